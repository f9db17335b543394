"""The configuration: three sources, one frozen value, and errors that help."""

import dataclasses
import os
from ipaddress import ip_network
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mitm_cache import config
from mitm_cache.config import Config, load
from mitm_cache.config.registries import REGISTRY_KEYS, Upstream
from mitm_cache.errors import ConfigError
from mitm_cache.parsing import Endpoint, Limit
from mitm_cache.registries import DOCKER_HUB, TABLE
from mitm_cache.wire.proxies import Bypass, Proxy


def write(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text)
    return file


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return write(tmp_path, "")


# Every key: its TOML, the same as one text, the field, and what comes of it.
KEYS: dict[str, tuple[str, str, str, object]] = {
    "data_dir": ('"/srv/cache"', "/srv/cache", "data_dir", Path("/srv/cache")),
    "names": ('["Cache.Example", "10.0.0.5"]', "cache.example, 10.0.0.5", "names", ("cache.example", "10.0.0.5")),
    "listen.tls": ('["10.0.0.5:443", "[::1]:8443"]', "10.0.0.5:443,[::1]:8443", "listen",
                   {"tls": (Endpoint("10.0.0.5", 443), Endpoint("::1", 8443))}),
    "listen.clear": ('[":0"]', ":0", "listen", {"clear": (Endpoint("", 0),)}),
    "listen.mirror": ('[":5001"]', ":5001", "listen", {"mirror": (Endpoint("", 5001),)}),
    "listen.connect": ('[":3129"]', ":3129", "listen", {"connect": (Endpoint("", 3129),)}),
    "listen.admin": ('["[::1]:9501"]', "[::1]:9501", "listen", {"admin": (Endpoint("::1", 9501),)}),
    "clients.allow": ('["loopback", "192.0.2.0/24"]', "loopback,192.0.2.0/24", "allow",
                      (ip_network("127.0.0.0/8"), ip_network("::1"), ip_network("192.0.2.0/24"))),
    "clients.connect_ports": ("[443, 8443]", "443,8443", "connect_ports", (443, 8443)),
    "cache.max_size": ('"500G"', "500 GiB", "max_size", Limit(bytes=500 << 30)),
    "cache.min_free": ('"3%"', "3 %", "min_free", Limit(share=0.03)),
    "cache.tag_ttl": ('"5m"', "300s", "tag_ttl", 300.0),
    "cache.offline": ("true", "yes", "offline", True),
    "clients.users_file": ('"/etc/users"', "/etc/users", "users_file", Path("/etc/users")),
    "serve.workers": ("2", "2", "workers", 2),
    "serve.drain": ('"1m"', "60s", "drain", 60.0),
    "upstream.ca_file": ('"/etc/ca.pem"', "/etc/ca.pem", "ca_file", Path("/etc/ca.pem")),
    "upstream.resolvers": ('["9.9.9.9", "127.0.0.1:5353"]', "9.9.9.9,127.0.0.1:5353", "resolvers",
                           ("9.9.9.9", "127.0.0.1:5353")),
    "upstream.allow_http": ("true", "yes", "allow_http", True),
    "upstream.allow_private": ("true", "1", "allow_private", True),
    "upstream.proxy": ('"http://u:pw@proxy.example:3128/"', "http://u:pw@proxy.example:3128", "proxy",
                       Proxy("http", "proxy.example", 3128, "u", "pw")),
    "upstream.no_proxy": ('[".q.example", "10.0.0.0/8"]', ".q.example, 10.0.0.0/8", "no_proxy",
                          Bypass.of((".q.example", "10.0.0.0/8"))),
    "log.format": ('"json"', "json", "log_format", "json"),
    "ca.dir": ('"/srv/ca"', "/srv/ca", "ca_dir", Path("/srv/ca")),
    "ca.permit": ('["corp.example"]', "corp.example", "permit", ("corp.example",)),
    "local.names": ('["a.example", "mine/"]', "a.example,mine/", "local.names", ("a.example", "mine/")),
    "local.max_size": ('"5G"', "5G", "local.max_size", Limit(bytes=5 << 30)),
    "local.daemon": ('"tcp://10.0.0.5:2375"', "tcp://10.0.0.5:2375", "local.daemon", "tcp://10.0.0.5:2375"),
    "local.cert": ('"/etc/local.crt"', "/etc/local.crt", "local.cert", Path("/etc/local.crt")),
    "local.key": ('"/etc/local.key"', "/etc/local.key", "local.key", Path("/etc/local.key")),
}  # fmt: skip
HALVES = {"local.cert": "local.key", "local.key": "local.cert"}
"""Keys that are nothing without the other."""
OF_LOCAL = tuple(key for key in KEYS if key.startswith("local.") and key != "local.names")
"""Keys that are nothing without `local.names`."""
every_key = pytest.mark.parametrize("key", KEYS)


def toml(key: str, value: str) -> str:
    section, _, name = key.rpartition(".")
    return f"[{section}]\n{name} = {value}\n" if section else f"{name} = {value}\n"


def variable(key: str) -> str:
    return "MITM_CACHE_" + key.replace(".", "_").upper()


def beside(key: str) -> dict[str, str]:
    """The environment that a key needs."""
    half = {variable(HALVES[key]): "/etc/other"} if key in HALVES else {}
    return half | ({variable("local.names"): "x.example"} if key in OF_LOCAL else {})


def test_the_table_above_is_complete() -> None:
    """Every key there is stands in the table of these tests."""
    assert set(KEYS) == set(config.KEYS)


@every_key
def test_file(tmp_path: Path, key: str) -> None:
    """Each key can be set in the file."""
    value, _, name, expected = KEYS[key]
    assert attrgetter(name)(load(file=write(tmp_path, toml(key, value)), environ=beside(key))) == expected


@every_key
def test_environment(empty: Path, key: str) -> None:
    """Each key can be set in the environment, a list with commas."""
    _, text, name, expected = KEYS[key]
    assert attrgetter(name)(load(file=empty, environ={variable(key): text} | beside(key))) == expected


@every_key
def test_flags(empty: Path, key: str) -> None:
    """Each key can be set by a flag."""
    _, text, name, expected = KEYS[key]
    assert attrgetter(name)(load(file=empty, environ=beside(key), flags={key: text})) == expected


def test_weights(tmp_path: Path) -> None:
    """Flags outweigh the environment, which outweighs the file."""
    file = write(tmp_path, '[log]\nformat = "json"\n[cache]\nmax_size = "1G"\n[ca]\ndir = "/file"\n')
    environ = {"MITM_CACHE_LOG_FORMAT": "text", "MITM_CACHE_CACHE_MAX_SIZE": "2G"}
    loaded = load(file=file, environ=environ, flags={"cache.max_size": "3G"})
    assert (loaded.ca_dir, loaded.log_format, loaded.max_size) == (Path("/file"), "text", Limit(bytes=3 << 30))


def test_defaults(empty: Path) -> None:
    """With nothing set: loopback and private clients, 80 % of the disk, DNS of the machine, the known registries."""
    loaded = load(file=empty, environ={"HOME": "/home/ann", "XDG_DATA_HOME": "/xdg"})
    assert loaded.data_dir == (Path("/var/lib/mitm-cache") if os.geteuid() == 0 else Path("/xdg/mitm-cache"))
    assert loaded.ca_dir == loaded.data_dir / "ca"
    assert loaded.listen == {}
    assert loaded.allow == tuple(
        map(
            ip_network, ["127.0.0.0/8", "::1", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10"]
        )
    )
    assert loaded.max_size.of(1000) == 800
    assert (loaded.resolvers, loaded.ca_file, loaded.allow_http, loaded.log_format) == ((), None, False, "auto")
    assert tuple(loaded.known) == TABLE
    assert loaded.upstreams == {}
    assert {"docker.proxy", "quay.io", "registry-1.docker.io"} <= set(loaded.permitted_names())


def test_no_file(tmp_path: Path) -> None:
    """An empty text is no file, as the documentation shows the defaults."""
    loaded = load(file=write(tmp_path, '[upstream]\nca_file = ""\n[registries."q.io"]\nca_file = ""'), environ={})
    assert (loaded.ca_file, loaded.upstreams["q.io"].ca_file) == (None, None)


def test_frozen(empty: Path) -> None:
    """Nobody changes the configuration afterwards."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        load(file=empty, environ={}).allow_http = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("environ", "folder"),
    [({"XDG_DATA_HOME": "/x", "HOME": "/h"}, "/x/mitm-cache"), ({"HOME": "/h"}, "/h/.local/share/mitm-cache")],
)
def test_data_dir_of_users(tmp_path: Path, environ: dict[str, str], folder: str) -> None:
    """Who is not root has the XDG data directory, whether the system's is there or not."""
    other = os.geteuid() + 1
    assert config.default_data_dir(environ, tmp_path, other) == Path(folder)
    assert config.default_data_dir(environ, tmp_path / "none", other) == Path(folder)


def test_data_dir_of_the_service(tmp_path: Path) -> None:
    """The service's user has the service's data directory, so that its commands are about that one; so has root."""
    me = os.geteuid()
    assert config.default_data_dir({"HOME": "/h"}, tmp_path, me) == tmp_path
    assert config.default_data_dir({"HOME": "/h"}, tmp_path / "none", 0) == tmp_path / "none"
    if me:
        assert config.default_data_dir({"XDG_DATA_HOME": "/x"}, tmp_path, me) == Path("/x/mitm-cache")


def test_other_variables_are_ignored(empty: Path) -> None:
    """A variable that names no key changes nothing."""
    assert load(file=empty, environ={"MITM_CACHE_NONSENSE": "1", "LOG_FORMAT": "json"}).log_format == "auto"


# Errors: the key, the value, and what is allowed.

WRONG: dict[str, tuple[str, str, str]] = {
    "data_dir": ("5", "5", "is a path"),
    "names": ('["under_score"]', "'under_score'", "not a host name"),
    "listen.tls": ('["443"]', "'443'", "such as :443, 10.0.0.5:443 or [::1]:443"),
    "listen.clear": ('["localhost:80"]', "'localhost:80'", "not [address]:port"),
    "listen.mirror": ('[":65536"]', "':65536'", "not [address]:port"),
    "listen.connect": ('["3128"]', "'3128'", "not [address]:port"),
    "listen.admin": ('["9500"]', "'9500'", "not [address]:port"),
    "clients.allow": ('["10.0.0.0/33"]', "'10.0.0.0/33'", "such as 10.0.0.0/8, nor one of loopback, private, any"),
    "clients.connect_ports": ("[70000]", "[70000]", "is a list of ports"),
    "cache.min_free": ('"none"', "'none'", "such as 500G, nor a part of the disk such as 80%"),
    "cache.max_size": ('"huge"', "'huge'", "such as 500G, nor a part of the disk such as 80%"),
    "cache.tag_ttl": ("60", "60", "such as 90s, 30m, 12h, 3d or 2w"),
    "cache.offline": ('"maybe"', "'maybe'", "is true or false"),
    "clients.users_file": ("[]", "[]", "is a path"),
    "serve.workers": ("0", "0", "auto"),
    "serve.drain": ("30", "30", "such as 90s, 30m, 12h, 3d or 2w"),
    "upstream.ca_file": ("[]", "[]", "is a path"),
    "upstream.resolvers": ('["dns.google"]', "'dns.google'", "is not an address or address:port"),
    "upstream.allow_http": ('"maybe"', "'maybe'", "is true or false"),
    "upstream.allow_private": ('"some"', "'some'", "is true or false"),
    "upstream.proxy": ('"ftp://proxy.example:21"', "'ftp://proxy.example:21'", "http://, https:// or socks5://"),
    "upstream.no_proxy": ('["<local>"]', "'<local>'", "a network such as 10.0.0.0/8, or *"),
    "log.format": ('"xml"', "'xml'", "not one of auto, text, json"),
    "ca.dir": ("[]", "[]", "is a path"),
    "ca.permit": ("true", "True", "is a list of texts"),
    "local.names": ('["a/", "b/"]', "'b/'", "one is allowed, and any number of hosts"),
    "local.max_size": ('"huge"', "'huge'", "such as 500G, nor a part of the disk such as 80%"),
    "local.daemon": ('"/var/run/docker.sock"', "'/var/run/docker.sock'", "such as unix:///var/run/docker.sock"),
    "local.cert": ("[]", "[]", "is a path"),
    "local.key": ("false", "False", "is a path"),
    'registries."q.io".url': ('"ftp://q.io"', "'ftp://q.io'", "is not an https:// or http:// URL"),
    'registries."q.io".aliases': ('["a b"]', "'a b'", "is not a host name"),
    'registries."q.io".prefix': ('"a/b"', "'a/b'", "is no path part of its own"),
    'registries."q.io".auth_hosts': ("1", "1", "is a list of texts"),
    'registries."q.io".resolve': ('["q.example"]', "'q.example'", "is not an IP address"),
    'registries."q.io".ca_file': ("false", "False", "is a path"),
    'registries."q.io".proxy': ('"none"', "'none'", "http://, https:// or socks5://"),
    'registries."q.io".client_cert': ("[]", "[]", "is a path"),
    'registries."q.io".insecure': ('"maybe"', "'maybe'", "is true or false"),
    'registries."q.io".rights': ('"all"', "'all'", "not one of client, shared, open"),
    'registries."q.io".offline': ('"maybe"', "'maybe'", "is true or false"),
    'registries."q.io".credentials': ('{ vault = "x" }', "vault", "one of docker_config, helper, file, env"),
}


def test_every_key_can_be_wrong() -> None:
    """The table above holds every key, those of a registry too."""
    assert set(WRONG) == {*KEYS, *(f'registries."q.io".{name}' for name in REGISTRY_KEYS)}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_value(tmp_path: Path, key: str) -> None:
    """A wrong value is told with its key, itself, and what is allowed."""
    value, shown, allowed = WRONG[key]
    with pytest.raises(ConfigError) as caught:
        load(file=write(tmp_path, toml(key, value)), environ={})
    assert caught.value.message.startswith(key.replace('"', ""))
    assert shown in caught.value.message
    assert allowed in caught.value.message


@pytest.mark.parametrize(
    ("text", "key", "allowed"),
    [
        ("colour = 1", "colour", "data_dir, names, listen"),
        ("[cache]\nsize = 1", "cache.size", "max_size"),
        ("[listen]\nhttps = []", "listen.https", "tls, clear, connect, mirror"),
        ("[shop]\n", "shop", "registries"),
        (
            '[registries."quay.io"]\nuri = "x"',
            "registries.quay.io.uri",
            "url, aliases, prefix, auth_hosts, resolve, ca_file",
        ),
    ],
)
def test_unknown_key(tmp_path: Path, text: str, key: str, allowed: str) -> None:
    """A key that is none is told with the keys that are."""
    with pytest.raises(ConfigError) as caught:
        load(file=write(tmp_path, text), environ={})
    assert caught.value.message.startswith(f"{key} is not a key of this version; allowed here: ")
    assert allowed in caught.value.message


@pytest.mark.parametrize("text", ["cache = 1", "registries = []", '[registries]\n"quay.io" = "x"', "log = 'json'"])
def test_no_table(tmp_path: Path, text: str) -> None:
    """Where a table belongs, anything else is told."""
    with pytest.raises(ConfigError, match="is a table of keys, not"):
        load(file=write(tmp_path, text), environ={})


def test_environment_over_no_table(tmp_path: Path) -> None:
    """So it is where the environment sets a key of it."""
    with pytest.raises(ConfigError, match="log is a table of keys, not 'json'"):
        load(file=write(tmp_path, "log = 'json'"), environ={"MITM_CACHE_LOG_FORMAT": "text"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"a = [", "is not TOML", id="syntax"),
        pytest.param(b"a = '\xff'", "is not TOML", id="not UTF-8"),
        pytest.param(b"a = " + b"9" * 5000, "is not TOML", id="a number without end"),
        pytest.param(b"data_dir = 0x" + b"9" * 5000, "is not TOML", id="a number that cannot be shown"),
        pytest.param(b"a = " + b"[" * 50_000, "is not TOML", id="nested without end"),
    ],
)
def test_no_toml(tmp_path: Path, content: bytes, message: str) -> None:
    """A file that is no TOML is named."""
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load(file=file, environ={})
    assert str(file) in caught.value.message


def test_system_file() -> None:
    """Without another the system's file counts, and where there is none the embedded defaults."""
    assert str(config.SYSTEM_FILE) == "/etc/mitm-cache/config.toml"
    if not config.SYSTEM_FILE.exists():
        assert load(environ={}, flags={"data_dir": "/x"}).data_dir == Path("/x")


def test_a_system_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its folder holds credentials: it is not taken for one that is not there."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    monkeypatch.setattr(config, "SYSTEM_FILE", folder / "config.toml")
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read everything
    try:
        with pytest.raises(ConfigError, match=r"configuration .*config\.toml cannot be read: Permission denied"):
            load(environ={})
    finally:
        os.seteuid(user)


def test_missing_file(tmp_path: Path) -> None:
    """A file that was asked for has to be there."""
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        load(file=tmp_path / "missing.toml", environ={})


texts = st.one_of(
    st.text(max_size=12),
    st.text("0123456789.%GKTib ²٣[]:/@~-,", max_size=12),
    st.sampled_from(["https://[", "https://:pw@h/", "~nobody-here/x", ":²", "9" * 400, "9" * 5000, "²%", "\0", "https://h:x"]),
)  # fmt: skip
anything = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.dates(), texts, st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)


@given(st.sampled_from([*KEYS, "registries", *config.SECTIONS]), st.one_of(texts, anything))
@example("listen.tls", ":²")
@example("listen.tls", f":{'9' * 5000}")
@example("cache.max_size", "9" * 400)
@example("cache.max_size", "²%")
@example("cache.max_size", 10**400)
@example("data_dir", "~nobody-here/x")
@example("data_dir", "\0")
@example("names", "::1")
def test_any_value(key: str, value: Any) -> None:
    """Whatever a file, a variable or a flag holds, it is taken or told as a ConfigError with the key."""
    _load_or_tell({key: value}, key)


@given(st.one_of(st.just("q.io"), texts), st.sampled_from(REGISTRY_KEYS), st.one_of(texts, anything))
@example("q.io", "url", "https://[")
@example("q.io", "url", "https://\u2100.example")
@example("q.io", "aliases", "::1")
def test_any_registry(name: str, key: str, value: Any) -> None:
    """So it is below registries."""
    _load_or_tell({"registries": {name: {key: value}}}, "registries")


def _load_or_tell(flags: dict[str, Any], key: str) -> None:
    try:
        loaded = load(file=Path("/dev/null"), environ={}, flags=flags)
    except ConfigError as error:
        refusal = error
    else:
        assert isinstance(loaded, Config)
        assert all(loaded.permitted_names())
        return
    assert key in refusal.message


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("1", 1), ("1K", 1 << 10), ("1.5 M", 3 << 19), ("2GB", 2 << 30), ("2GiB", 2 << 30), ("1t", 1 << 40),
        ("50%", 500), ("12.5 %", 125), ("100%", 1000),
    ],
)  # fmt: skip
def test_sizes(empty: Path, text: str, limit: int) -> None:
    """A size is bytes with a unit, or a part of the disk."""
    assert load(file=empty, environ={}, flags={"cache.max_size": text}).max_size.of(1000) == limit


@pytest.mark.parametrize("text", ["0", "0%", "101%", "-1G", "1E", "G", "", "1..5G", "%", "1 2", "nan", "inf", "0.1"])
def test_no_sizes(empty: Path, text: str) -> None:
    """Nothing, more than the disk, and less than a byte are no limits."""
    with pytest.raises(ConfigError, match="is not a size"):
        load(file=empty, environ={}, flags={"cache.max_size": text})


def test_a_number_of_bytes(tmp_path: Path) -> None:
    """A plain TOML number is bytes."""
    assert load(file=write(tmp_path, toml("cache.max_size", "1000")), environ={}).max_size == Limit(bytes=1000)


@pytest.mark.parametrize("endpoint", [Endpoint("", 443), Endpoint("10.0.0.5", 1), Endpoint("fd00::1", 8443)])
def test_endpoint_text(empty: Path, endpoint: Endpoint) -> None:
    """An endpoint is printed as it is written."""
    assert load(file=empty, environ={}, flags={"listen.tls": str(endpoint)}).listen["tls"] == (endpoint,)


# Registries.


def registries(folder: Path, text: str) -> Config:
    return load(file=write(folder, text), environ={})


def test_a_registry_of_ones_own(tmp_path: Path) -> None:
    """A registry that is not in the table, with a port in its name, is known by it and permitted without it."""
    text = (
        '[registries."reg.example:5000"]\nurl = "https://10.0.0.9:5000/"\nresolve = ["10.0.0.9"]\nca_file = "/c.pem"\n'
    )
    loaded = registries(tmp_path, text)
    found = loaded.known.find("reg.example:5000")
    assert found is not None
    assert (found.name, found.host, found.aliases) == ("reg.example:5000", "reg.example:5000", ())
    assert loaded.known.find("reg.example") is None
    assert loaded.upstreams == {"reg.example:5000": Upstream("https://10.0.0.9:5000", ("10.0.0.9",), Path("/c.pem"))}
    assert "reg.example" in loaded.permitted_names()
    assert len(list(loaded.known)) == len(TABLE) + 1


@pytest.mark.parametrize("name", ["docker.io", "registry-1.docker.io", "index.docker.io"])
def test_merged_with_the_table(tmp_path: Path, name: str) -> None:
    """A table registry, named by any of its names, keeps what is known of it and gets what is added."""
    text = (
        f'[registries."{name}"]\naliases = ["hub.corp.example", "index.docker.io"]\nauth_hosts = ["sso.corp.example"]\n'
    )
    loaded = registries(tmp_path, text)
    found = loaded.known.find("hub.corp.example")
    assert found is not None
    assert (found.name, found.host) == (DOCKER_HUB.name, DOCKER_HUB.host)
    assert found.aliases == (*DOCKER_HUB.aliases, "hub.corp.example")
    assert found.auth_hosts == (*DOCKER_HUB.auth_hosts, "sso.corp.example")
    assert loaded.known.find("docker.io") is found
    assert list(loaded.upstreams) == ["docker.io"]
    assert len(list(loaded.known)) == len(TABLE)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        pytest.param('[registries."a.example"]\naliases = ["quay.io"]', "quay.io", id="a table registry's name"),
        pytest.param('[registries."a.example"]\naliases = ["index.docker.io"]', "index.docker.io", id="its alias"),
        pytest.param(
            '[registries."a.example"]\naliases=["c.example"]\n[registries."b.example"]\naliases=["c.example"]',
            "c.example",
            id="each other's alias",
        ),
        pytest.param(
            '[registries."a.example"]\naliases=["b.example"]\n[registries."b.example"]',
            "b.example",
            id="the other's name",
        ),
        pytest.param('[registries."quay.io"]\naliases=["QUAY.IO", "ghcr.io"]', "ghcr.io", id="in the table itself"),
        pytest.param('[registries."quay.io"]\nprefix="q"\n[registries."ghcr.io"]\nprefix="q"', "q", id="by prefix"),
    ],
)  # fmt: skip
def test_shared_names(tmp_path: Path, text: str, host: str) -> None:
    """A host name that would mean two registries is told, with both."""
    with pytest.raises(ConfigError, match=rf"registries\..*: {host} already means"):
        registries(tmp_path, text)


def test_one_registry_twice(tmp_path: Path) -> None:
    """Two tables for one registry, by two of its names, would lose one of them: told."""
    with pytest.raises(ConfigError, match=r"registries\.index\.docker\.io.*docker\.io"):
        registries(tmp_path, '[registries."docker.io"]\naliases=["x.example"]\n[registries."index.docker.io"]\n')


@pytest.mark.parametrize("name", ["Quay.IO", "quay.io/team", "https://quay.io", "", "quay.io:", "-x", "a b", "[::1]:5"])
def test_no_registry_names(tmp_path: Path, name: str) -> None:
    """What is no host name, lower-case, with a port at most, is told."""
    with pytest.raises(ConfigError, match="is not a host name"):
        load(file=write(tmp_path, ""), environ={}, flags={"registries": {name: {}}})


@pytest.mark.parametrize(
    "url",
    ["https://", "quay.io", "https://u:p@q.io", "https://:p@q.io", "https://q.io?x=1", "https://q.io#x",
     "https://q.io:0", "https://q.io:99999", "https://[", "https://q.io\n"],
)  # fmt: skip
def test_no_urls(tmp_path: Path, url: str) -> None:
    """An upstream's URL is scheme, host, port and path, nothing else."""
    with pytest.raises(ConfigError, match=r"registries\.q\.io\.url: .* is not an https:// or http:// URL"):
        load(file=write(tmp_path, ""), environ={}, flags={"registries": {"q.io": {"url": url}}})


def test_permitted_names_once(tmp_path: Path) -> None:
    """What the CA may certify is each name once: registries without their ports, own names, and what is permitted."""
    text = (
        'names = ["cache.example", "10.0.0.5", "fd00::5"]\n[registries."r.example:1"]\n[registries."r.example:2"]\n'
        '[ca]\npermit = ["cache.example", "corp.example"]\n'
    )
    permitted = registries(tmp_path, text).permitted_names()
    assert len(set(permitted)) == len(permitted)
    assert {"r.example", "cache.example", "10.0.0.5", "fd00::5", "corp.example"} <= set(permitted)
    assert not [name for name in permitted if name.startswith("r.example:")]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('names = ["c.example:8443"]', "names"),
        ('[ca]\npermit = ["c.example:8443"]', r"ca\.permit"),
        ('[registries."q.io"]\naliases = ["fd00::1"]', r"registries\.q\.io\.aliases"),
    ],
)
def test_names_for_certificates(tmp_path: Path, text: str, key: str) -> None:
    """The cache's own names and permitted ones have no port; an alias is a host name that a Host header can hold."""
    with pytest.raises(ConfigError, match=key):
        registries(tmp_path, text)


# Proxies.


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({"HTTPS_PROXY": "http://one:1", "https_proxy": "http://two:2"}, Proxy("http", "one", 1)),
        ({"https_proxy": "two:2"}, Proxy("http", "two", 2)),
        ({"HTTPS_PROXY": "", "https_proxy": "socks5h://two"}, Proxy("socks5", "two", 1080)),
        ({"HTTPS_PROXY": "https://[::1]"}, Proxy("https", "::1", 443)),
        ({"HTTP_PROXY": "http://one:1", "ALL_PROXY": "http://one:1"}, None),
        ({"HTTPS_PROXY": "http://one:1", "MITM_CACHE_UPSTREAM_PROXY": ""}, None),
    ],
)
def test_proxy_of_the_environment(empty: Path, environ: dict[str, str], proxy: Proxy | None) -> None:
    """What every program is told is the default, scheme or not; an empty key is none."""
    assert load(file=empty, environ=environ).proxy == proxy


def test_no_proxy_of_the_environment(empty: Path) -> None:
    """So is NO_PROXY; one that is wrong is told by its own name."""
    assert load(file=empty, environ={"no_proxy": "a.example,*.b.example"}).no_proxy.matches("x.b.example", 443)
    environ = {"NO_PROXY": "*", "MITM_CACHE_UPSTREAM_NO_PROXY": ""}
    assert not load(file=empty, environ=environ).no_proxy.matches("x", 443)
    with pytest.raises(ConfigError, match=r"^NO_PROXY: '<local>' is not"):
        load(file=empty, environ={"NO_PROXY": "<local>"})


@pytest.mark.parametrize(
    "value",
    [
        "http://u:hidden@", "u:hidden@proxy:3128", "http://u:hidden", "http://u:hid#den@proxy:1", "ftp://u:hidden@proxy",
        "http://u:hidden@proxy:x", "http://u:hidden%0a@proxy:1", "http://u:hidden@proxy/path", "http://hidden@pro xy",
        "http://u:hidden@[proxy", ["http://u:hidden@proxy"], {"hidden": "hidden"}, f"http://u:hidden{'x' * 256}@proxy",
    ],
)  # fmt: skip
def test_no_password_in_errors(empty: Path, value: Any) -> None:
    """A value that may hold a password is not repeated, however it is wrong."""
    for flags in ({"upstream.proxy": value}, {"registries": {"q.io": {"proxy": value}}}):
        with pytest.raises(ConfigError, match=r"proxy: its value, not shown") as caught:
            load(file=empty, environ={}, flags=flags)
        assert "hid" not in caught.value.message


def test_no_password_in_repr(empty: Path) -> None:
    """Nor does it stand in what a log would hold of the configuration."""
    url = "http://someone:hidden@proxy:3128"
    flags = {"upstream.proxy": url, "registries": {"q.io": {"proxy": url}}}
    assert "hidden" not in repr(load(file=empty, environ={}, flags=flags))


@pytest.mark.parametrize(
    ("text", "expected"), [("", ""), ("direct", "direct"), ("socks5://p", Proxy("socks5", "p", 1080))]
)
def test_proxy_of_a_registry(empty: Path, text: str, expected: object) -> None:
    """One of its own, none, or what the others have."""
    loaded = load(file=empty, environ={}, flags={"registries": {"q.io": {"proxy": text}}})
    assert loaded.upstreams["q.io"].proxy == expected


# The registry for images of one's own.

LOCAL_NAMES = '[local]\nnames = ["registry.local", "localhost:5000", "10.0.0.5:5000", "mine/"]'


def test_local_names(tmp_path: Path) -> None:
    """All of them are one registry; those that no client believes without TLS are within the CA's constraints."""
    loaded = load(file=write(tmp_path, LOCAL_NAMES), environ={})
    local = loaded.known.named("local")
    assert local is not None
    assert local.is_local
    for host in ("registry.local", "localhost:5000", "10.0.0.5:5000", "local"):
        assert loaded.known.find(host) is local
    assert loaded.known.part("mine") is local
    assert loaded.known.find("localhost") is None
    permitted = loaded.permitted_names()
    assert "registry.local" in permitted
    assert not {"local", "localhost", "10.0.0.5"} & set(permitted)
    files = '\ncert = "/local.crt"\nkey = "/local.key"'
    assert "registry.local" not in load(file=write(tmp_path, LOCAL_NAMES + files), environ={}).permitted_names()


def test_no_local_names(empty: Path) -> None:
    """Without names there is no such registry."""
    loaded = load(file=empty, environ={})
    assert loaded.known.named("local") is None
    assert not any(registry.is_local for registry in loaded.known)


@pytest.mark.parametrize(
    "text",
    [
        '[local]\nnames = ["a.example:5000"]\n[registries."a.example"]',
        '[local]\nnames = ["docker.proxy:5000"]',
        '[local]\nnames = ["docker.io.example"]',
        '[local]\nnames = []\nmax_size = "15%"\ndaemon = ""\ncert = ""\nkey = ""',
    ],
)
def test_good_local_names(tmp_path: Path, text: str) -> None:
    """Another port of a host of one's own is another registry; what is empty is as if it were not there."""
    load(file=write(tmp_path, text), environ={})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[local]\nnames = ["quay.io"]', "local.names: 'quay.io' belongs to the registry quay.io; take one that is"),
        ('[local]\nnames = ["quay.io:5000"]', "'quay.io:5000' belongs to the registry quay.io"),
        ('[local]\nnames = ["quay.io/"]', "local.names: quay.io already means the registry quay.io"),
        ('[local]\nnames = ["docker.io"]', "'docker.io' belongs to the registry docker.io"),
        ('[local]\nnames = ["a.example", "Docker.io:5000"]', "'docker.io:5000' belongs to the registry docker.io"),
        ('[local]\nnames = ["registry-1.docker.io:443"]', "belongs to the registry docker.io"),
        ('[local]\nnames = ["index.docker.io:80"]', "belongs to the registry docker.io"),
        ('[local]\nnames = ["registry.hub.docker.com"]', "belongs to the registry docker.io"),
        ('[local]\nnames = ["auth.docker.io"]', "belongs to the registry docker.io"),
        ('[local]\nnames = ["k8s.gcr.io"]', "belongs to the registry registry.k8s.io"),
        ('[local]\nnames = ["a.example:443"]\n[registries."a.example"]', "belongs to the registry a.example"),
        ('[local]\nnames = ["b.example"]\n[registries."a.example"]\naliases = ["b.example"]', "'b.example' belongs to"),
        ('[local]\nnames = ["b.example"]\n[registries."a.example"]\nauth_hosts = ["b.example"]', "'b.example' belongs"),
        ('[local]\nnames = ["a/b/"]', "'a/b/' is neither a host, as 'localhost:5000', nor a path prefix"),
        ('[local]\nnames = ["/"]', "'/' is neither a host"),
        ('[local]\nnames = ["http://localhost:5000"]', "'http://localhost:5000' is neither a host"),
        ('[local]\nnames = ["library/"]', "'library' is no path part of its own"),
        ('[local]\nnames = ["under_score"]', "'under_score' is not a host name"),
        ('[local]\nnames = ["docker.proxy"]', "local.names: 'docker.proxy' is the cache's own, by names"),
        ('[local]\nmax_size = "5G"', "local.max_size: '5G' does nothing without the registry for images of one's own"),
        ('[local]\nmax_size = "16%"', "local.max_size: '16%' does nothing"),
        ('[local]\nnames = []\ndaemon = "tcp://h:1"', "local.daemon: 'tcp://h:1' does nothing without the registry"),
        ('[local]\ncert = "/a"\nkey = "/b"', "local.cert: '/a' does nothing without the registry"),
        ('[local]\ncert = "/a"', "local.key is missing"),
        ('[local]\nkey = "/a"', "local.cert is missing"),
        ('[local]\ndaemon = "tcp://h"', "'tcp://h' is not unix:///PATH"),
        ('[local]\nnames = ["a.example"]\n[registries."a.example"]', "registries.a.example"),
        ('[registries.local]\nurl = "https://a.example"', "registries.local: local is the registry for images"),
        ('[local]\nnames = ["m/"]\n[registries."q.io"]\nprefix = "m"', "m already means"),
    ],
)
def test_wrong_local_names(tmp_path: Path, text: str, words: str) -> None:
    """What they cannot be is told with what is allowed."""
    with pytest.raises(ConfigError) as caught:
        load(file=write(tmp_path, text), environ={})
    assert words in caught.value.message
