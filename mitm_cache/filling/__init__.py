"""Filling the cache without a client: from image names, or a file of them."""
