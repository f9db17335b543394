"""`mitm-cache demo`: a registry, an S3-like host and a client of our own, to show a whole pull without a network.

Nothing here uses the cache's own parsers: what the cache understands must not be checked by the same code.
"""
