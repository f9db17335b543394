"""The users file in a mitmproxy of one's own: whose password it is stays the service's question there too."""

import json
from base64 import b64encode
from pathlib import Path

import bcrypt
import pytest

from mitm_cache.wire.challenge import parse_bearer
from tests.addons.conftest import Put
from tests.addons.mitmdump import mitmdump
from tests.fakes.registry import LyingUpstream

NAME = "registry.demo"


def basic(password: str) -> str:
    return f"Basic {b64encode(f'ann:{password}'.encode()).decode()}"


def test_a_users_password_stays_here(
    tmp_path: Path, upstream: LyingUpstream, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right password is taken out before the registry is asked, and the access line has the user; a wrong one is
    the registry's."""
    users = tmp_path / "users"
    users.touch(mode=0o600)
    users.write_text(f"ann:{bcrypt.hashpw(b'planted', bcrypt.gensalt(4)).decode()}\n")
    monkeypatch.setenv("MITM_CACHE_CLIENTS_USERS_FILE", str(users))
    scripts = ("intercept_registries", "pull_through", "access_log")
    with mitmdump(tmp_path, *scripts, upstream=upstream, others={}) as running:
        with running.client(NAME, running.stock_ca) as client:
            assert client.get(put.tag, Authorization=basic("planted")).status == 200
        [line] = running.log.wait(1, user="ann")
        heard = upstream.requests.select()
        assert heard
        assert not any("authorization" in {name.lower() for name in record.headers} for record in heard)
        with running.client(NAME, running.stock_ca) as client:
            client.get(f"/v2/{put.repository}/tags/list", Authorization=basic("wrong"))
        assert [record for record in upstream.requests.select() if basic("wrong") in record.headers.values()]
        assert "planted" not in running.text
    assert line["status"] == 200


def test_tokens_of_the_local_registry(tmp_path: Path, upstream: LyingUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ping asks for a token, which is had at the same name and is good there."""
    users = tmp_path / "users"
    users.touch(mode=0o600)
    users.write_text(f"ann:{bcrypt.hashpw(b'planted', bcrypt.gensalt(4)).decode()}\n")
    monkeypatch.setenv("MITM_CACHE_CLIENTS_USERS_FILE", str(users))
    monkeypatch.setenv("MITM_CACHE_LOCAL_NAMES", "registry.local")
    with (
        mitmdump(tmp_path, "intercept_registries", "pull_through", upstream=upstream, others={}) as running,
        running.client("registry.local", running.stock_ca) as client,
    ):
        ping = client.get("/v2/")
        challenge = parse_bearer(ping.headers["WWW-Authenticate"])
        assert challenge is not None, ping.headers["WWW-Authenticate"]
        assert challenge.realm == "https://registry.local:443/v2/token"  # as its Host is
        for login in ({}, {"Authorization": basic("planted")}):
            token = json.loads(client.get("/v2/token", **login).body)["token"]
            assert client.get("/v2/", Authorization=f"Bearer {token}").status == 200
