"""Images as files, on their way over an air gap: written from the cache, and read into it."""
