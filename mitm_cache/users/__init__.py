"""The users of the cache itself: a file of names and bcrypt hashes, what is known of who has the right password, and
tokens by which users are known at the local registry."""

from mitm_cache.users.tokens import OwnTokens
from mitm_cache.users.users import Users

__all__ = ["OwnTokens", "Users"]
