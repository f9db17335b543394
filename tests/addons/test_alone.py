"""Each script alone in a stock mitmdump: it does its job, by the classes that the service runs."""

import http.client
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.addons.conftest import Put
from tests.addons.mitmdump import Mitmdump, mitmdump
from tests.fakes.faults import cut_after
from tests.fakes.registry import LyingUpstream
from tests.fakes.registry import Witness as Elsewhere

NAME, OTHER = "registry.demo", "elsewhere.demo"
BROKEN = (http.client.IncompleteRead, ConnectionError, ssl.SSLError)

type Start = Callable[..., Mitmdump]

ways = pytest.mark.parametrize("direct", [False, True], ids=["connect", "hosts"])


@pytest.mark.parametrize(
    ("addon", "classes"),
    [
        ("intercept_registries", ["registries.Known"]),
        ("mint_certs", ["ca.authority.CertificateAuthority", "proxy.intercept.Intercept"]),
        ("follow_redirects", ["upstream.client.Client", "upstream.route.Router", "proxy.deliver.Pump"]),
        ("pull_through", ["pull_through.PullThrough", "proxy.serve.Serve", "proxy.door.Door", "proxy.deliver.Pump"]),
        ("access_log", ["journal.Journal", "journal.AccessLine"]),
    ],
)
def test_the_classes_of_the_service(addon: str, classes: list[str], start: Start) -> None:
    """What works in mitmdump are objects of the very classes that the service is made of."""
    assert {f"mitm_cache.{name}" for name in classes} <= start(addon).at_work()


# intercept_registries


@ways
def test_registries_are_decrypted(direct: bool, start: Start, put: Put) -> None:
    """A registry's TLS is mitmproxy's, and its answers come."""
    running = start("intercept_registries")
    with running.client(NAME, running.stock_ca, direct=direct) as client:
        reply = client.get(put.tag, Accept=put.image.index.media_type)
        assert (reply.status, reply.body) == (200, put.image.index.body)
        assert client.issuer() == "mitmproxy"


def test_other_hosts_are_not(start: Start, upstream: LyingUpstream, elsewhere: Elsewhere) -> None:
    """Any other host shows its own certificate, and hears the client itself."""
    with start("intercept_registries").client(OTHER, upstream.ca_file) as client:
        assert client.get("/any").body == b"elsewhere"
        assert client.issuer() != "mitmproxy"
        assert {record.sni for record in elsewhere.requests} == {OTHER}


@pytest.mark.parametrize(
    ("addon", "sni", "host", "direct"),
    [
        ("intercept_registries", NAME, OTHER, False),
        ("intercept_registries", OTHER, NAME, False),
        ("intercept_registries", NAME, OTHER, True),
        ("intercept_registries", OTHER, NAME, True),
        ("follow_redirects", OTHER, OTHER, False),
        ("pull_through", NAME, OTHER, False),
        ("pull_through", OTHER, NAME, False),
        ("pull_through", OTHER, OTHER, False),
        ("pull_through", NAME, OTHER, True),
    ],
)
def test_wrong_identity(addon: str, sni: str, host: str, direct: bool, start: Start, upstream: LyingUpstream) -> None:
    """Who comes by the name of one host and means another is refused; behind CONNECT, which names the registry, too."""
    running = start(addon)
    with running.client(NAME, running.stock_ca, sni=sni, direct=direct) as client:
        reply = client.get("/v2/", Host=host)
        assert (reply.status, reply.outcome) == (421, "REFUSED")
        assert len(upstream.requests) == 0


def test_wrong_identity_by_http_2(tmp_path: Path, upstream: LyingUpstream) -> None:
    """mitmproxy speaks HTTP/2 with clients where no server says otherwise first; there the name is in :authority."""
    with mitmdump(tmp_path, "intercept_registries", upstream=upstream, options=["connection_strategy=lazy"]) as running:
        assert running.status_by_http_2(f"https://{NAME}/v2/", host=NAME) == 200
        upstream.requests.clear()
        assert running.status_by_http_2(f"https://{NAME}/v2/", host=OTHER) == 421
        assert len(upstream.requests) == 0


# mint_certs


@ways
def test_leaves_of_our_ca(direct: bool, start: Start, put: Put) -> None:
    """A client that trusts our CA, and it alone, gets through."""
    running = start("mint_certs")
    with running.client(NAME, running.own_ca, direct=direct) as client:
        assert client.get(put.tag, Accept=put.image.index.media_type).body == put.image.index.body
        assert client.issuer() == "mitm-cache"


def test_other_leaves_are_mitmproxys(start: Start) -> None:
    """Our CA signs for no other name; mitmproxy's own does, as without us."""
    running = start("mint_certs")
    with running.client(OTHER, running.own_ca) as client, pytest.raises(ssl.SSLError):
        client.get("/")
    with running.client(OTHER, running.stock_ca) as client:
        assert client.get("/").body == b"elsewhere"
        assert client.issuer() == "mitmproxy"


# follow_redirects


@ways
def test_the_end_of_the_chain(direct: bool, start: Start, upstream: LyingUpstream, put: Put) -> None:
    """A blob comes from where the registry leads to, which sees no credential; nothing is kept."""
    running = start("follow_redirects")
    alice = {"Authorization": "Basic YTpi"}
    with running.client(NAME, running.stock_ca, direct=direct) as client:
        for _ in range(2):
            reply = client.get(put.blob, **alice)
            assert (reply.status, reply.body, reply.outcome) == (200, put.content, "RELAY")
        part = client.get(put.blob, Range="bytes=10-19", **alice)
        assert (part.status, part.body) == (206, put.content[10:20])
    assert {each.authorization for each in upstream.requests.select(kind="blob")} == {"Basic"}
    assert {each.authorization for each in upstream.requests.select(kind="object")} == {""}
    assert upstream.requests.count(kind="object") == 3
    assert running.blobs() == set()


def test_refusals_come_back(start: Start, put: Put) -> None:
    """What the registry refuses, it refuses in its own words."""
    running = start("follow_redirects")
    with running.client(NAME, running.stock_ca) as client:
        reply = client.get(f"/v2/{put.repository}/manifests/none")
        assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")


def test_a_broken_body_is_cut(start: Start, upstream: LyingUpstream, put: Put) -> None:
    """What breaks off upstream is never a short 200 here."""
    upstream.lie("object", cut_after(1000))
    running = start("follow_redirects")
    with running.client(NAME, running.stock_ca) as client, pytest.raises(BROKEN):
        client.get(put.blob)


# pull_through


@ways
def test_a_hit_needs_no_upstream(direct: bool, start: Start, upstream: LyingUpstream, put: Put) -> None:
    """The first pull is a MISS, the second a HIT, also when the registry is down and with a range."""
    running = start("pull_through")
    with running.client(NAME, running.stock_ca, direct=direct) as client:
        assert client.get(put.tag, Accept=put.image.index.media_type).body == put.image.index.body
        first = client.get(put.blob)
        assert (first.body, first.outcome) == (put.content, "MISS")
        upstream.stop()
        try:
            second = client.get(put.blob)
            assert (second.body, second.outcome) == (put.content, "HIT")
            client.close()  # and by a new connection, which mitmproxy would begin by one to the registry
            part = client.get(put.blob, Range="bytes=-10")
            assert (part.status, part.body, part.outcome) == (206, put.content[-10:], "HIT")
        finally:
            upstream.start()


def test_pushes_are_relayed(start: Start, upstream: LyingUpstream) -> None:
    """What is no pull goes to the registry, and its answer comes back."""
    running = start("pull_through")
    with running.client(NAME, running.stock_ca) as client:
        reply = client.ask("POST", "/v2/team/new/blobs/uploads/", body=b"x" * 1000)
        [record] = upstream.requests.select(method="POST")
        assert (reply.status, reply.outcome) == (record.status, "RELAY")


def test_a_registry_speaks_tls(start: Start) -> None:
    """Behind a CONNECT to a registry nothing else is taken."""
    running = start("pull_through")
    with running.tunnel(NAME) as wire:
        wire.sendall(b"GET /v2/ HTTP/1.1\r\nHost: registry.demo\r\n\r\n")
        assert b"by TLS only" in wire.makefile("rb").read()


def test_no_http_2(start: Start) -> None:
    """A client that offers HTTP/2 is told to speak HTTP/1.1, whoever shows the certificate."""
    running = start("pull_through")
    context = ssl.create_default_context(cafile=running.stock_ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with running.tunnel(NAME) as wire, context.wrap_socket(wire, server_hostname=NAME) as tls:
        assert tls.selected_alpn_protocol() == "http/1.1"


def test_other_scripts_may_answer(start: Start, upstream: LyingUpstream, put: Put) -> None:
    """An answer that another script has made is the answer."""
    running = start("pull_through")
    with running.client(NAME, running.stock_ca) as client:
        reply = client.get(put.blob, **{"X-Witness": "1"})
        assert (reply.status, reply.body) == (418, b"witness")
        assert len(upstream.requests) == 0
        assert client.get(put.blob).outcome == "MISS"


@ways
def test_others_are_left_alone(direct: bool, start: Start) -> None:
    """A host that is no registry is mitmproxy's, as without us."""
    running = start("pull_through")
    with running.client(OTHER, running.stock_ca, direct=direct) as client:
        reply = client.get("/any")
        assert (reply.body, reply.headers["X-Cache"]) == (b"elsewhere", None)
        assert client.issuer() == "mitmproxy"


# access_log


def test_lines_for_what_mitmproxy_passes_on(start: Start, upstream: LyingUpstream, put: Put) -> None:
    """One line for each flow: a registry's by its parts, another host's by its name."""
    running = start("access_log")
    with running.client(NAME, running.stock_ca) as client:
        client.get(put.tag, Accept=put.image.index.media_type)
    [line] = running.log.wait(1, repository=put.repository)
    assert (line["registry"], line["reference"], line["listener"]) == (NAME, "1", "connect")
    assert (line["outcome"], line["status"], line["method"]) == ("RELAY", 200, "GET")
    assert line["bytes_out"] == line["bytes_in"] == len(put.image.index.body)
    with running.client(OTHER, running.stock_ca) as client:
        client.get("/any?secret=1")
    [line] = running.log.wait(1, registry="")
    assert line["reason"] == "elsewhere.demo, passed on by mitmproxy"
    assert running.log.count() == 2
    assert "secret" not in running.log.text


def test_lines_for_what_fails(start: Start, upstream: LyingUpstream, put: Put) -> None:
    """An answer that breaks off is an ERROR."""
    upstream.lie("tag", cut_after(10))
    running = start("access_log")
    with running.client(NAME, running.stock_ca) as client:
        assert client.get(put.tag).status == 502
    [line] = running.log.wait(1, repository=put.repository)
    assert line["outcome"] == "ERROR"


# The options.


def test_wrong_configuration(tmp_path: Path) -> None:
    """A wrong key ends mitmdump with the message that `mitm-cache` gives."""
    with mitmdump(tmp_path, "access_log", config="cache.size = 1", ready=False) as running:
        assert running.popen.wait(30) == 1
        assert "OptionsError: cache.size is not a key of this version; allowed here: max_size" in running.text


def test_wrong_data_directory(tmp_path: Path) -> None:
    """So does a directory that is somebody else's, in one line; the option has more weight than the file."""
    options = ["mitm_cache_data_dir=/proc"]
    with mitmdump(tmp_path, "pull_through", options=options, ready=False) as running:
        assert running.popen.wait(30) == 1
        assert "pull_through: data_dir /proc holds" in running.text
        assert "Traceback" not in running.text
