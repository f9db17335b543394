"""A caching man in the middle for all container registries."""
