"""Setting up a node that pulls through the cache: what its files should hold, and how to undo it."""
