"""The registries of the lab's internet: real distribution processes behind the front."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import trustme

from tests.lab import network
from tests.lab.access import AccessLog
from tests.lab.front import Front, Site
from tests.lab.host import Host
from tests.lab.network import internet_address
from tests.lab.process import Process
from tests.lab.store import ACCESS, BUCKET, SECRET, Store
from tests.lab.tokens import ISSUER, USERS


@dataclass(frozen=True)
class Registry:
    """One registry: its names, how it asks for credentials, and where its blobs are.

    A blob GET is redirected to a presigned URL at the host `cdn`, or at a path `downloads` of the registry's own host,
    which the redirect names relatively; with neither the registry sends it itself. With `elsewhere` (host and path)
    the registry has nothing at all: every manifest and blob is redirected there.
    """

    name: str
    aliases: tuple[str, ...] = ()
    auth: Literal["none", "basic", "token"] = "none"
    realm: str = ""
    cdn: str = ""
    downloads: str = ""
    elsewhere: str = ""

    @property
    def store(self) -> str:
        """The name by which it asks its S3 store, and which its presigned URLs are made for; none with files."""
        return self.name if self.downloads else self.cdn


REGISTRIES = (
    Registry("quay.io", cdn="cdn01.quay.io"),
    Registry(
        "registry-1.docker.io",
        ("index.docker.io", "docker.io"),
        auth="token",
        realm="https://auth.docker.io/token",
        cdn="production.cloudflare.docker.com",
    ),
    Registry("ghcr.io", auth="token", realm="https://ghcr.io/token", cdn="pkg-containers.githubusercontent.com"),
    Registry("private.example.com", auth="basic"),
    Registry("gcr.io", auth="token", realm="https://gcr.io/v2/token", downloads="/artifacts-downloads/"),
    Registry("registry.k8s.io", elsewhere="us-west1-docker.pkg.dev/v2/k8s-artifacts-prod/images"),
)
# What nodes know nothing of: only redirects lead there.
_BEHIND = (Registry("us-west1-docker.pkg.dev"),)
_RUNNING = tuple(registry for registry in (*REGISTRIES, *_BEHIND) if not registry.elsewhere)
TOKEN_HOST = "auth.docker.io"
CDNS = tuple(registry.cdn for registry in REGISTRIES if registry.cdn)
_STORES = tuple(registry.store for registry in REGISTRIES if registry.store)
REGISTRY_NAMES = tuple(name for registry in REGISTRIES for name in (registry.name, *registry.aliases))
# The names in the order of their addresses; aliases share one. The last address is the registries' own way to the
# store.
_HOSTS = (*(registry.name for registry in (*REGISTRIES, *_BEHIND)), *CDNS, TOKEN_HOST)
HOST_COUNT = len(_HOSTS) + 1
INSIDE = internet_address(len(_HOSTS))
ADDRESSES = {name: internet_address(index) for index, name in enumerate(_HOSTS)} | {
    alias: internet_address(index) for index, registry in enumerate(REGISTRIES) for alias in registry.aliases
}
_TOKEN_PORT, _FIRST_PORT, _S3_DOOR, _FILES_DOOR = 5100, 5001, 5010, 5011


def _pass(location: str, port: int) -> str:
    """A location of nginx that some server on loopback answers for."""
    return f"location {location} {{ proxy_pass http://127.0.0.1:{port}; }}"


def _elsewhere(registry: Registry) -> str:
    """Directives of a registry that redirects everything but its API's root."""
    return (
        'location = /v2/ { default_type application/json; return 200 "{}"; }\n'
        f"  location ~ ^/v2/(?<rest>.+)$ {{ return 307 https://{registry.elsewhere}/$rest$is_args$args; }}"
    )


class Internet:
    """The internet's side, running."""

    def __init__(self, host: Host, registries: Host, store: Store, ca: trustme.CA) -> None:
        self.host, self._registries, self._store, self._ca = host, registries, store, ca
        self.front = Front(host, ca, self._sites(), host.log / "access.log")
        self.log = AccessLog(host.log / "access.log", self.front.probe)
        self._folder = registries.folder

    def _sites(self) -> list[Site]:
        sites = [Site((TOKEN_HOST,), (ADDRESSES[TOKEN_HOST], network.TOKEN_HOST), _pass("= /token", _TOKEN_PORT))]
        for index, registry in enumerate(_RUNNING):
            names, port = (registry.name, *registry.aliases), _FIRST_PORT + index
            directives = [_pass("/", port), _pass(f"= {urlsplit(registry.realm).path or '/token'}", _TOKEN_PORT)]
            directives += [self._downloads(registry, port)] if registry.downloads else []
            sites.append(Site(names, (ADDRESSES[registry.name],), "\n  ".join(directives)))
        sites += [Site((one.name,), (ADDRESSES[one.name],), _elsewhere(one)) for one in REGISTRIES if one.elsewhere]
        objects = _pass("/", self._store.port)
        sites += [Site((cdn,), (ADDRESSES[cdn],), objects) for cdn in CDNS]
        # A registry asks its store itself, under the name it redirects to: that is none of the clients' requests.
        return [*sites, Site(_STORES, (INSIDE,), objects, logged=False)]

    def _downloads(self, registry: Registry, port: int) -> str:
        """Directives that turn distribution's 307 to its store into a 302 to a relative location, and serve that.

        The store is not shown Authorization: clients send it along, since the host is the same.
        """
        return "\n  ".join(
            (
                f'location ~ "^/v2/.+/blobs/[a-z0-9]+:[0-9a-f]+$" {{ proxy_pass http://127.0.0.1:{port};',
                "  proxy_intercept_errors on; error_page 307 = @downloads; }",
                "location @downloads { absolute_redirect off;",
                '  if ($upstream_http_location ~ "^https://[^/]+/(?<signed>.+)$") {',
                f"    return 302 {registry.downloads}$signed; }} return 500; }}",
                f"location {registry.downloads} {{ proxy_pass http://127.0.0.1:{self._store.port}/;",
                '  proxy_set_header Authorization ""; proxy_set_header Host $host; proxy_set_header Connection ""; }',
            )
        )

    def _configuration(self, registry: Registry | None, port: int, store: str) -> Path:
        """A distribution configuration (JSON is YAML); without a registry, a door for pushing."""
        if store:
            keys = {"accesskey": ACCESS, "secretkey": SECRET, "region": "us-east-1", "bucket": BUCKET}
            kind = {"s3": {**keys, "regionendpoint": store, "secure": store.startswith("https"), "v4auth": True}}
        else:
            kind = {"filesystem": {"rootdirectory": str(self._folder / "files")}}
        document: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {**kind, "maintenance": {"uploadpurging": {"enabled": False}}},
            "http": {"addr": f"127.0.0.1:{port}", "secret": "lab"},
        }
        if registry and registry.auth == "basic":
            document["auth"] = {"htpasswd": {"realm": "lab private", "path": str(self._folder / "htpasswd")}}
        if registry and registry.auth == "token":
            bundle = {"issuer": ISSUER, "rootcertbundle": str(self._folder / "ca.crt")}
            document["auth"] = {"token": {"realm": registry.realm, "service": registry.name, **bundle}}
        path = self._folder / f"{registry.name if registry else 'door'}-{port}.yml"
        path.write_text(json.dumps(document))
        return path

    def start(self, python: str, root: Path) -> None:
        """Start everything at once, then wait for all of it."""
        self._store.start()
        self.front.start()
        self._ca.cert_pem.write_to_path(str(self._folder / "ca.crt"))
        signer = self._ca.issue_cert("token-signer.example.com")
        signer.cert_chain_pems[0].write_to_path(str(self._folder / "signer.crt"))
        signer.private_key_pem.write_to_path(str(self._folder / "signer.key"))
        logins = (self.host.run("htpasswd", "-Bbn", *login).out.strip() for login in USERS.items())
        (self._folder / "htpasswd").write_text("\n".join([*logins, ""]))
        files = [str(self._folder / "signer.crt"), str(self._folder / "signer.key")]
        token = self.host.start("tokens", python, "-m", "tests.lab.tokens", str(_TOKEN_PORT), *files, cwd=root)
        # The S3 driver looks for its bucket at the start.
        self._store.ready()
        started: list[tuple[Process, int]] = [(token, _TOKEN_PORT)]
        for index, registry in enumerate(_RUNNING):
            store = f"https://{registry.store}" if registry.store else ""
            started.append(self._distribution(registry, _FIRST_PORT + index, store))
        started.append(self._distribution(None, _S3_DOOR, f"http://127.0.0.1:{self._store.port}"))
        started.append(self._distribution(None, _FILES_DOOR, ""))
        for process, port in started:
            process.wait_until(partial(self.host.listening, port), f"{process.name} on {port}")

    def _distribution(self, registry: Registry | None, port: int, store: str) -> tuple[Process, int]:
        path = self._configuration(registry, port, store)
        return self._registries.start(f"registry-{path.stem}", "docker-registry", "serve", str(path)), port

    def push(self, source: str, *names: str, files: bool = False) -> None:
        """Push a skopeo source as each `repository:tag`, past the front, to the S3 registries or those with files."""
        door = _FILES_DOOR if files else _S3_DOOR
        for name in names:
            flags = ["--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false"]
            self.host.run("skopeo", "copy", *flags, source, f"docker://127.0.0.1:{door}/{name}")


@contextmanager
def internet(host: Host, registries: Host, ca: trustme.CA, *, python: str, root: Path) -> Iterator[Internet]:
    """The internet's side, started on `host`; `registries` is the same host with the registries' own names."""
    host.resolve(ADDRESSES)
    registries.resolve(dict.fromkeys(_STORES, INSIDE))
    for one in (host, registries):
        one.trust("system", ca.cert_pem.bytes().decode())
    store = Store(host)
    with ExitStack() as stack:
        stack.callback(store.remove_sockets)
        world = Internet(host, registries, store, ca)
        world.start(python, root)
        yield world
