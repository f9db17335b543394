"""Where nodes reach a cache, and by which names."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mitm_cache.welcome
from mitm_cache.app import App
from mitm_cache.cli.example import render_hosts
from mitm_cache.cli.serve import banner
from mitm_cache.config import LISTENERS, load
from mitm_cache.registries import TABLE, Known
from mitm_cache.welcome.facts import Facts, Place, own_address, places
from mitm_cache.welcome.names import rows
from mitm_cache.welcome.pages import Welcome
from tests.needs import needs_root, needs_tool

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("bound", "names", "expected"),
    [
        pytest.param([("tls", "::", 443)], [], {"tls": ("198.51.100.1", 443)}, id="everywhere"),
        pytest.param([("tls", "0.0.0.0", 443)], [], {"tls": ("198.51.100.1", 443)}, id="all of IPv4"),
        pytest.param([("tls", "10.0.0.5", 443)], [], {"tls": ("10.0.0.5", 443)}, id="one address"),
        pytest.param(
            [("tls", "10.0.0.5", 443), ("mirror", "10.0.0.6", 5000)],
            [],
            {"tls": ("10.0.0.5", 443), "mirror": ("10.0.0.6", 5000)},
            id="each its own",
        ),
        pytest.param(
            [("tls", "10.0.0.5", 443), ("tls", "10.0.0.6", 443)], [], {"tls": ("10.0.0.5", 443)}, id="the first"
        ),
        pytest.param(
            [("tls", "127.0.0.1", 443), ("tls", "10.0.0.6", 8443)], [], {"tls": ("10.0.0.6", 8443)}, id="not loopback"
        ),
        pytest.param([("tls", "127.0.0.1", 443)], [], {"tls": ("127.0.0.1", 443)}, id="only loopback"),
        pytest.param([("tls", "fe80::1%eth0", 443)], [], {"tls": ("fe80::1", 443)}, id="a zone"),
        pytest.param(
            [("tls", "172.17.0.2", 443), ("clear", "::", 80)],
            ["docker.proxy", "192.0.2.9"],
            {"tls": ("192.0.2.9", 443), "clear": ("192.0.2.9", 80)},
            id="the operator's word",
        ),
        pytest.param([("tls", "::", 443)], ["fe80::1%eth0"], {"tls": ("198.51.100.1", 443)}, id="no word with a zone"),
    ],
)
def test_places(bound: list[tuple[str, str, int]], names: list[str], expected: dict[str, tuple[str, int]]) -> None:
    """Each listener's place is one that another host can use."""
    assert places(bound, names, "198.51.100.1") == {name: Place(*place) for name, place in expected.items()}


@given(st.ip_addresses(v=6), st.integers(1, 65535))
def test_ipv6(address: object, port: int) -> None:
    """An IPv6 address stands in brackets before its port."""
    assert str(Place(str(address), port)) == f"[{address}]:{port}"


def test_rows() -> None:
    """The rows are those of `mitm-cache example hosts`."""
    known = Known(TABLE)
    lines = render_hosts(known, ("docker.proxy", "192.0.2.1"), "192.0.2.10").splitlines()
    found = list(rows(known, ("docker.proxy", "192.0.2.1")))
    assert [line.removeprefix("192.0.2.10 ").split() for line in lines if line[0] != "#"] == [
        list(row) for row in found
    ]
    assert found[0] == ("docker.proxy",)
    names = [name for row in found for name in row]
    assert len(names) == len(set(names))


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    file = tmp_path / "config.toml"
    file.write_text(f'data_dir = "{tmp_path / "data"}"\n')
    app = App(load(file=file, environ={}, flags={f"listen.{name}": "127.0.0.1:0" for name in LISTENERS}))
    yield app
    app.close()


@needs_root()
@needs_tool("unshare", package="util-linux")
@needs_tool("ip", package="iproute2")
@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        pytest.param("ip link set lo up", "127.0.0.1", id="nothing but loopback"),
        pytest.param("ip link set lo up && {lan}", "198.51.100.7", id="a network without a way out"),
        pytest.param("ip link set lo up && {lan} && {out}", "203.0.113.9", id="the way out"),
    ],
)
def test_the_address_that_is_told(prepare: str, told: str) -> None:
    """It is that towards the default route, and where there is none, as over an air gap, that of an interface."""
    lan = "ip link add lan type veth peer name lan2 && ip addr add 198.51.100.7/24 dev lan && ip link set lan up"
    out = (
        "ip link add out type veth peer name out2 && ip addr add 203.0.113.9/24 dev out && ip link set out2 up && "
        "ip link set out up && ip route add default via 203.0.113.1"
    )
    code = "from mitm_cache.welcome.facts import own_address; print(own_address())"
    script = f'{prepare.format(lan=lan, out=out)} && exec "$@"'
    command = ["unshare", "--net", "sh", "-ec", script, "sh", sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip() == told


def test_said_at_the_start(app: App) -> None:
    """The banner's line takes the very script that the pages of this service hand out."""
    facts = Facts.of(app.config, app.authority, app.bound.addresses(), own_address())
    script = Welcome(facts, ready=lambda: True).script
    text = "\n".join(banner(app, own_address()))
    assert f"  {script.line('mirror')}\n" in text
    assert script.sha256 in text
    assert facts.base in text


@pytest.mark.parametrize(
    ("names", "told"), [('["localhost:5000", "registry.lan"]', "localhost:5000"), ('["mine/"]', "{mirror}/mine")]
)
def test_how_to_push(tmp_path: Path, names: str, told: str) -> None:
    """The banner has the name by which images are pushed, where the cache is their registry."""
    file = tmp_path / "config.toml"
    file.write_text(f'data_dir = "{tmp_path / "data"}"\n[local]\nnames = {names}\n')
    app = App(load(file=file, environ={}, flags={f"listen.{name}": "127.0.0.1:0" for name in LISTENERS}))
    try:
        mirror = Facts.of(app.config, app.authority, app.bound.addresses(), own_address()).places["mirror"]
        assert f"docker push {told.format(mirror=mirror)}/app\n" in "\n".join(banner(app, own_address()))
    finally:
        app.close()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = directory.glob("*.whl")
    return wheel


def test_in_the_wheel(wheel: Path) -> None:
    """The wheel holds the script as it is here, where this room reads it."""
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.read("mitm_cache/welcome/setup.sh")
    assert packed == Path(mitm_cache.welcome.__path__[0], "setup.sh").read_bytes()


def test_template(tmp_path: Path) -> None:
    """The file in the package says that it is only a template, and does nothing."""
    script = shutil.copy(Path(mitm_cache.welcome.__path__[0], "setup.sh"), tmp_path)
    done = subprocess.run(
        ["sh", script],
        env={"DESTDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "template" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["setup.sh"]
