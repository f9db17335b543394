"""The pages at the cache's own names: what this is, its CA, and a script that sets a node up."""
