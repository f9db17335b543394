"""Local names through the whole product: every way that a client may come leads to the one registry, and back."""

import json
from pathlib import Path

from mitm_cache.oci.manifest import OCI_MANIFEST
from tests.fakes.registry import LyingUpstream
from tests.local.registry import CONFIG, digest_of, manifest
from tests.serving import Client, in_thread

NAMES = """
[local]
names = ["registry.local", "localhost", "mine/"]
max_size = "1G"
[registries."docker.io"]
offline = true
"""
LAYER = bytes(range(256)) * 5000


def push(client: Client, prefix: str, query: str = "") -> None:
    """An image by one way; each Location is followed as it stands."""
    mark = f"?{query}" if query else ""
    for content in (CONFIG, LAYER):
        client.head(f"/v2/{prefix}app/blobs/{digest_of(content)}{mark}")  # as clients ask before
        opened = client.ask("POST", f"/v2/{prefix}app/blobs/uploads/{mark}", {"Content-Length": "0"})
        assert opened.status == 202, opened.body
        place = opened.headers["Location"]
        assert client.ask("PATCH", place, body=content).status == 202
        place += ("&" if "?" in place else "?") + f"digest={digest_of(content)}"
        put = client.ask("PUT", place, {"Content-Length": "0"})
        assert put.status == 201, put.body
        assert client.head(put.headers["Location"]).status == 200
    target = f"/v2/{prefix}app/manifests/1{mark}"
    put = client.ask("PUT", target, {"Content-Type": OCI_MANIFEST}, manifest(LAYER))
    assert put.status == 201, put.body
    got = client.get(put.headers["Location"])
    assert (got.status, got.body) == (200, manifest(LAYER))
    assert client.get(target).body == manifest(LAYER)
    tags = client.get(f"/v2/{prefix}app/tags/list{mark}")
    assert json.loads(tags.body) == {"name": f"{prefix}app", "tags": ["1"]}


def test_every_way_in(tmp_path: Path) -> None:
    """By TLS and in clear, at a mirror by Host, by `?ns=` as containerd pushes, by the prefix and by `local/`."""
    with LyingUpstream(tmp_path) as upstream, in_thread(tmp_path / "data", upstream, more=NAMES) as served:
        ways = [
            ("tls", "registry.local", "", ""),
            ("clear", "registry.local", "", ""),
            ("mirror", "localhost", "", ""),
            ("mirror", "registry.local", "", ""),
            ("mirror", "cache.example", "", "ns=localhost"),
            ("mirror", "cache.example", "", "ns=registry.local"),
            ("mirror", "cache.example", "mine/", ""),
            ("mirror", "127.0.0.1", "local/", ""),
        ]
        for listener, name, prefix, query in ways:
            with served.client(listener, name=name) as client:
                push(client, prefix, query)
        assert {line["outcome"] for line in served.log.select(registry="local")} == {"LOCAL"}
        blobs = served.blobs()
        with served.client("mirror", name="127.0.0.1") as client:
            everything = json.loads(client.get("/v2/_catalog").body)["repositories"]
            assert "local/app" in everything
            # The cache's own address is Docker Hub's mirror all the same.
            assert client.get("/v2/app/manifests/1").status == 404
        assert blobs == {digest_of(each) for each in (CONFIG, LAYER, manifest(LAYER))}
        assert upstream.requests.count() == 0


def test_users(tmp_path: Path) -> None:
    """A client learns from the ping how to log in, also where only a path will lead to the local registry."""
    users = tmp_path / "users"
    users.write_text("ci:$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW\n")
    users.chmod(0o600)
    more = f'{NAMES}[clients]\nusers_file = "{users}"\n'
    with LyingUpstream(tmp_path) as upstream, in_thread(tmp_path / "data", upstream, more=more) as served:
        for name in ("localhost", "cache.example"):
            with served.client("mirror", name=name) as client:
                ping = client.get("/v2/")
                realm = f'Bearer realm="http://{name}/v2/local/token",service="{name}"'
                assert (ping.status, ping.headers["WWW-Authenticate"]) == (401, realm)
                wrong = client.get("/v2/", {"Authorization": "Basic Y2k6d3Jvbmc="})
                assert (wrong.status, wrong.outcome) == (401, "REFUSED")
                login = {"Authorization": "Basic Y2k6VSpV"}  # ci:U*U, the first of bcrypt's published vectors
                assert client.get("/v2/", login).status == 200
                opened = client.ask("POST", "/v2/local/app/blobs/uploads/", {"Content-Length": "0"})
                assert opened.status == 401
            with served.client("mirror", name=name) as client:
                opened = client.ask("POST", "/v2/local/app/blobs/uploads/", {"Content-Length": "0", **login})
                assert opened.status == 202
