"""TLS with clients: a leaf for each server name that is a registry's, minted when it is first asked for.

Names of the local registry may have a certificate from elsewhere instead.

The name in a ClientHello is the client's own choice, so leaves are minted for known names only; their number bounds
the contexts that are kept. A name that is not known gets no certificate and no answer.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from mitmproxy.tls import ClientHelloData, TlsData
from OpenSSL import SSL, crypto

from mitm_cache.ca import CertificateAuthority
from mitm_cache.ca.given import GivenCertificate
from mitm_cache.errors import ConfigError
from mitm_cache.journal import Event, Journal

HTTP = b"http/1.1"
CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""TLS 1.2 with forward secrecy and authenticated encryption; TLS 1.3 has nothing else."""


class Authority(Protocol):
    """Who signs: one CA, or the custody of those that follow each other."""

    def signer(self, now: datetime) -> CertificateAuthority:
        """The CA that signs at `now`."""


@dataclass(frozen=True, slots=True)
class Minted:
    """A context with its leaf, the fingerprint of who signed it, when that was, and from when on another is due."""

    context: SSL.Context
    signer: str
    made_at: datetime
    renew_at: datetime


@dataclass(frozen=True, slots=True)
class LocalNames:
    """The local registry's host names: `given` is shown for those that it is for, and `clear` are for clear text."""

    hosts: Collection[str] = ()
    clear: Collection[str] = ()
    given: GivenCertificate | None = None


class Intercept:
    """The addon that gives mitmproxy its client-side TLS; the stock TlsConfig stays out, since it writes a CA of its
    own that may sign for anything."""

    def __init__(
        self,
        *,
        authority: Authority,
        names: Collection[str],
        journal: Journal,
        listeners: Callable[[str], str],
        clock: Callable[[], datetime],
        local: LocalNames = LocalNames(),
    ) -> None:
        """`names`: the server names that are intercepted; `listeners`: the listener of a connection by its id."""
        self._authority = authority
        self._names = frozenset(names)
        self._clear = frozenset(local.clear)
        self._journal = journal
        self._listeners = listeners
        self._clock = clock
        self._minted: dict[str, Minted] = {}
        self._given: dict[str, SSL.Context] = {}
        if (given := local.given) is not None:
            context = _make_context(given.certificate_chain_pem, given.private_key_pem)
            self._given = {name: context for name in local.hosts if given.covers(name)}

    def tls_clienthello(self, data: ClientHelloData) -> None:
        """There is no server to ask first."""
        data.establish_server_tls_first = False

    def tls_start_client(self, data: TlsData) -> None:
        """Choose the context by name, or by our own address where none is given (RFC 6066, 3: an address is no name).

        Without a context mitmproxy closes the connection.
        """
        name = (data.conn.sni or "").lower().rstrip(".") or _local_address(data)
        if name not in self._names:
            self._record_refusal(data, name)
            return
        try:
            context = self.context(name)
        except ConfigError as error:  # an older CA, or one that has ended: other names may do
            if name not in self._clear:  # where clients try TLS first, and go on without it
                self._record_refusal(data, name, error.message)
            return
        data.ssl_conn = SSL.Connection(context)
        data.ssl_conn.set_accept_state()

    def context(self, name: str) -> SSL.Context:
        """The context for a known name: with what is given for it, or a leaf of the CA that signs now and not due to
        be renewed. Raises ConfigError where the CA may not sign for it."""
        if name in self._given:
            return self._given[name]
        now = self._clock()
        signer = self._authority.signer(now)
        minted = self._minted.get(name)
        # Not made yet: the clock was ahead then, and nodes whose clocks are right would not take the leaf.
        if minted is None or minted.signer != signer.fingerprint or not minted.made_at <= now < minted.renew_at:
            leaf = signer.mint(name, now=now)
            context = _make_context(leaf.certificate_chain_pem, leaf.private_key_pem)
            minted = Minted(context, signer.fingerprint, now, leaf.renew_at)
            self._minted[name] = minted
        return minted.context

    def _record_refusal(self, data: TlsData, name: str, problem: str = "") -> None:
        shown = "".join(c if c.isprintable() else "?" for c in name[:253])
        client = data.conn.peername
        self._journal.record(
            Event(
                time=time.time(),
                listener=self._listeners(data.conn.id),
                client=client[0] if client else "",
                outcome="REFUSED",
                reason=problem
                or (
                    f"server name {shown!r} is not a registry this cache serves"
                    if data.conn.sni
                    else f"no server name (SNI), and {shown} is not in names"
                ),
            )
        )


def _local_address(data: TlsData) -> str:
    return data.conn.sockname[0].removeprefix("::ffff:") if data.conn.sockname else ""


def _make_context(chain: bytes, key: bytes) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(CIPHERS)
    # Ticket keys are per context and per process, so tickets would seldom be of use; Go's clients ask for none.
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_alpn_select_callback(lambda _, offers: HTTP if HTTP in offers else SSL.NO_OVERLAPPING_PROTOCOLS)
    leaf, *issuers = _split(chain)
    context.use_certificate(crypto.load_certificate(crypto.FILETYPE_PEM, leaf).to_cryptography())
    for issuer in issuers:
        context.add_extra_chain_cert(crypto.load_certificate(crypto.FILETYPE_PEM, issuer).to_cryptography())
    private = crypto.load_privatekey(crypto.FILETYPE_PEM, key).to_cryptography_key()
    context.use_privatekey(private)  # type: ignore[arg-type]  # its type allows for public keys, load_privatekey does not
    return context


def _split(chain: bytes) -> list[bytes]:
    end = b"-----END CERTIFICATE-----\n"
    return [part + end for part in chain.split(end) if part.strip()]
