"""What goes between processes: the line of a worker, the control socket, addresses."""

import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from mitm_cache.config import LISTENERS, load
from mitm_cache.errors import ConfigError
from mitm_cache.listening import Bound, bind_places, close_others
from mitm_cache.workers.channel import MAX_SOCKETS, Work, receive_work, send_work
from mitm_cache.workers.control import NAME, ask
from mitm_cache.workers.start import listen


@pytest.mark.parametrize("count", [0, 1, MAX_SOCKETS, MAX_SOCKETS + 3])
def test_work_with_many_sockets(tmp_path: Path, count: int) -> None:
    """All arrive, in their order: one worker that follows 64 has all of theirs, more than one message takes."""
    config = load(environ={}, flags={"data_dir": str(tmp_path)})
    with ExitStack() as stack:
        ours, theirs = map(stack.enter_context, socket.socketpair())
        sockets = [("tls", stack.enter_context(socket.socket())) for _ in range(count)]
        for _, each in sockets:
            each.bind(("127.0.0.1", 0))
        sending = threading.Thread(target=send_work, args=(ours, Work(config, Bound(sockets))))
        sending.start()
        work = receive_work(theirs)
        sending.join()
        assert work is not None
        for _, each in work.bound.sockets:
            stack.enter_context(each)
        assert work.config.data_dir == config.data_dir
        names = [(name, each.getsockname()) for name, each in work.bound.sockets]
        assert names == [(name, each.getsockname()) for name, each in sockets]


@pytest.mark.parametrize("said", [b"", b"\0\0", b"\0\0\0\x09\0\0\0\0some"], ids=["nothing", "half a head", "half"])
def test_a_supervisor_that_is_gone(said: bytes) -> None:
    """There is no work."""
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(said)
        assert receive_work(theirs) is None


def test_a_service_that_was_quicker(tmp_path: Path) -> None:
    """Two may bind an address at once; who listens there last is told as if it could not be bound."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        host, port = other.getsockname()
        flags = {"data_dir": str(tmp_path), **{f"listen.{name}": [] for name in LISTENERS}}
        places = bind_places(load(environ={}, flags=flags | {"listen.tls": [f"{host}:{port}"]}), 1, {})
        try:
            other.listen()
            with pytest.raises(ConfigError, match=rf"listen\.tls: {host}:{port} cannot be bound: Address"):
                listen(places)
        finally:
            close_others(places, {})


def test_a_service_that_ends_before_it_answers(tmp_path: Path) -> None:
    """Whoever has asked it for something is told so."""
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(tmp_path / NAME))
        service.listen()

        def end() -> None:
            with service.accept()[0] as line:
                line.recv(1024)

        ending = threading.Thread(target=end)
        ending.start()
        with pytest.raises(ConnectionError, match="the service has ended before it answered"):
            ask(tmp_path, "reload", seconds=30)
        ending.join()
