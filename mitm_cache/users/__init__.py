"""The users of the cache itself: a file of names and bcrypt hashes, and what is known of who has the right password."""

from mitm_cache.users.users import Users

__all__ = ["Users"]
