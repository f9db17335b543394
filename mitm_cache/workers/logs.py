"""Where warnings go."""

import logging
import sys


def configure_logging() -> None:
    """Warnings to standard error, one line each; mitmproxy's remarks that are recorded as events are left out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.addFilter(lambda record: not record.getMessage().startswith(_KNOWN_REMARKS))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


_KNOWN_REMARKS = (
    "Warning: Running proxyserver without nextlayer addon!",
    "No TLS context was provided, failing connection.",
    "Client TLS handshake failed.",
)
