"""The local certificate authority: its files, its leaves, and its life from the first start to its successor."""

from mitm_cache.ca.authority import CertificateAuthority, Description, Leaf
from mitm_cache.ca.certificates import BACKDATED, CA_LIFETIME, LEAF_LIFETIME, LEAF_RENEWAL
from mitm_cache.ca.files import CERTIFICATE_FILE, KEY_FILE

__all__ = [
    "BACKDATED",
    "CA_LIFETIME",
    "CERTIFICATE_FILE",
    "KEY_FILE",
    "LEAF_LIFETIME",
    "LEAF_RENEWAL",
    "CertificateAuthority",
    "Description",
    "Leaf",
]
