"""Clients that take their time, or take nothing: here where no clock is waited for; the limits themselves have tests
of their own."""

import socket
from collections.abc import Callable
from contextlib import ExitStack

from tests.hostile.case import Case
from tests.hostile.cases.tls import hello
from tests.hostile.scene import HUB, TAG, Scene
from tests.proxy.raw import LISTENERS, Raw, dial, request

HELLO = hello(HUB)


def _say_nothing(scene: Scene, raw: Raw) -> None:
    """Connected, that is all."""


def others_are_served(
    name: str, count: int, begin: Callable[[Scene, Raw], None], listener: str, *, tls: bool = False
) -> Case:
    """Connections that are left as they are after a beginning: somebody else is served as ever."""

    def run(scene: Scene) -> None:
        with ExitStack() as stack:
            for _ in range(count):
                made = dial(scene.cache, listener) if tls else Raw(scene.cache.address(listener))
                begin(scene, stack.enter_context(made))
            for each in LISTENERS:
                with dial(scene.cache, each) as raw:
                    raw.send(request(TAG, "Accept: */*", host=HUB))
                    assert raw.answer().status == 200

    return Case(name, "others are served meanwhile, at every listener", run, asks=True)


def _flood_of_uploads(scene: Scene) -> None:
    with ExitStack() as stack:
        for _ in range(70):
            raw = stack.enter_context(Raw(scene.cache.address("clear")))
            raw.send(request("/v2/team/app/blobs/uploads/", "Content-Length: 1000000", method="POST", host=HUB))
        with dial(scene.cache, "clear") as raw:
            raw.send(request(TAG, "Accept: */*", host=HUB))
            assert raw.answer().status == 200


def _resets(scene: Scene) -> None:
    for _ in range(50):
        raw = dial(scene.cache, "clear")
        raw.send(request(TAG, "Accept: */*", host=HUB))
        raw.reset()


def _half_closed(scene: Scene) -> None:
    for _ in range(20):
        with dial(scene.cache, "clear") as raw:
            raw.send(request("/v2/", host=HUB)[:-2])
            raw.socket.shutdown(socket.SHUT_WR)
            assert raw.rest() == b""


def _byte_by_byte(scene: Scene) -> None:
    with dial(scene.cache, "clear") as raw:
        for byte in request(TAG, "Accept: */*", host=HUB):
            raw.send(bytes([byte]))
        assert raw.answer().status == 200


def _hello_byte_by_byte(scene: Scene) -> None:
    with Raw(scene.cache.address("tls")) as raw:
        for byte in hello(HUB):
            raw.send(bytes([byte]))
        assert raw.read(1) == b"\x16"


CASES: tuple[Case, ...] = (
    others_are_served("100 connections that say nothing, at the TLS listener", 100, _say_nothing, "tls"),
    others_are_served("100 connections that say nothing, at the connect listener", 100, _say_nothing, "connect"),
    others_are_served("100 halves of a ClientHello", 100, lambda _, raw: raw.send(HELLO[:100]), "tls"),
    others_are_served("100 ClientHellos and no more", 100, lambda _, raw: raw.send(HELLO), "tls"),
    others_are_served("100 halves of a head", 100, lambda _, raw: raw.send(request(TAG, host=HUB)[:30]), "clear"),
    others_are_served("100 halves of CONNECT", 100, lambda _, raw: raw.send(b"CONNECT docker.io:443 HT"), "connect"),
    others_are_served(
        "100 registries' CONNECTs and no more",
        100,
        lambda _, raw: raw.send(request(f"{HUB}:443", method="CONNECT", host=HUB)),
        "connect",
    ),
    others_are_served(
        "100 heads of pulls with a body that does not come",
        100,
        lambda _, raw: raw.send(request(TAG, "Content-Length: 5", host=HUB)),
        "mirror",
    ),
    others_are_served(
        "100 clients that read nothing of their answers",
        100,
        lambda _, raw: raw.send(request(TAG, "Accept: */*", host=HUB) * 5),
        "clear",
    ),
    others_are_served(
        "30 clients that sent 1 MB of requests ahead",
        30,
        lambda _, raw: raw.send(request("/v2/", host=HUB) * 500),
        "clear",
    ),
    others_are_served(
        "20 requests inside of TLS that stop in the middle",
        20,
        lambda _, raw: raw.send(request(TAG, host=HUB)[:30]),
        "tls",
        tls=True,
    ),
    Case(
        "70 uploads of one address whose bodies do not come",
        "others are served meanwhile",
        _flood_of_uploads,
        asks=True,
    ),
    Case("50 requests, each followed by a reset", "the cache serves on", _resets, asks=True),
    Case("20 halves of a head, then FIN", "the end of the connection, without an answer", _half_closed),
    Case("a head byte by byte", "served", _byte_by_byte, asks=True),
    Case("a ClientHello byte by byte", "a ServerHello", _hello_byte_by_byte),
)
