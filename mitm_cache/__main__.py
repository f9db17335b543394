"""`python -m mitm_cache`."""

from mitm_cache.cli import main

if __name__ == "__main__":
    main()
