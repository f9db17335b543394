"""A token server (the distribution "token" scheme): `python -m tests.lab.tokens PORT CERTIFICATE KEY`.

Anonymous callers may pull everything but `private/*`, which needs lab:secret, and `others/*`, which dora may have too.
The token carries its certificate (x5c), which the registry checks against its root bundle.
"""

import base64
import json
import sys
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

ISSUER, LIFETIME = "lab-issuer", 300
USERS = {"lab": "secret", "dora": "doras-planted-passw0rd"}
CLOSED = {"private": {"lab"}, "others": {"lab", "dora"}}
"""Who may have what begins so."""

Query = Mapping[str, Sequence[str]]


def basic(user: str) -> str:
    """The `Authorization` of a user of the lab."""
    return "Basic " + base64.b64encode(f"{user}:{USERS[user]}".encode()).decode()


_LOGINS = {basic(user): user for user in USERS}


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def granted(scopes: Sequence[str], user: str) -> list[dict[str, object]]:
    """What a caller gets of what it asks for."""
    access: list[dict[str, object]] = []
    for scope in (one for value in scopes for one in value.split()):
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        wanted = actions.split(",")
        if user != "lab":
            closed = user not in CLOSED.get(name.partition("/")[0], {user})
            wanted = [] if closed else [action for action in wanted if action == "pull"]
        access.append({"type": kind, "name": name, "actions": wanted})
    return access


class Signer:
    """Signs tokens with one EC P-256 key."""

    def __init__(self, certificate: Path, key: Path) -> None:
        loaded = load_pem_private_key(key.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self._key = loaded
        chain = x509.load_pem_x509_certificates(certificate.read_bytes())
        self._chain = [base64.b64encode(one.public_bytes(Encoding.DER)).decode() for one in chain]

    def token(self, service: str, access: list[dict[str, object]], user: str) -> str:
        """A token for one service."""
        now = int(time.time())
        head = {"typ": "JWT", "alg": "ES256", "x5c": self._chain}
        life = {"iat": now, "nbf": now - 10, "exp": now + LIFETIME, "jti": str(time.time_ns())}
        claims = {"iss": ISSUER, "sub": user, "aud": service, "access": access, **life}
        signed = ".".join(_text(json.dumps(part).encode()) for part in (head, claims))
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_text(r.to_bytes(32) + s.to_bytes(32))}"


class Door(BaseHTTPRequestHandler):
    """GET with Basic or nothing; POST as OAuth2's password grant, which containerd tries first."""

    protocol_version = "HTTP/1.1"
    signer: Signer

    def log_message(self, *_: object) -> None:
        """Quiet: the front keeps the log."""

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "")
        user = _LOGINS.get(given)
        if given and user is None:
            return self._say(401, {"errors": [{"code": "UNAUTHORIZED"}]})
        return self._grant(parse_qs(urlsplit(self.path).query), user or "")

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        kind, user, password = (next(iter(form.get(name, [])), "") for name in ("grant_type", "username", "password"))
        if kind != "password" or USERS.get(user) != password:
            return self._say(401, {"errors": [{"code": "UNAUTHORIZED"}]})
        return self._grant(form, user)

    def _grant(self, query: Query, user: str) -> None:
        token = self.signer.token(next(iter(query.get("service", [])), ""), granted(query.get("scope", []), user), user)
        self._say(200, {"token": token, "access_token": token, "expires_in": LIFETIME})

    def _say(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(port: str, certificate: str, key: str) -> None:
    """Serve on loopback until ended."""
    Door.signer = Signer(Path(certificate), Path(key))
    ThreadingHTTPServer(("127.0.0.1", int(port)), Door).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
