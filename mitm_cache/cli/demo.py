"""`mitm-cache demo`: the main job in one command, with no network."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """The running cache, as the demo sees it."""

    host: str
    port: int
    ca_file: Path

    def address(self, listener: str) -> tuple[str, int]:
        return (self.host, self.port) if listener == "tls" else ("", 0)


@click.command()
def demo() -> None:
    """Pull an image through the cache twice, from a registry that is started for it, and show what happened.

    The registry answers blobs with redirects to signed URLs on another host, as the public ones do. Nothing leaves
    this machine and nothing is left behind.
    """
    from mitm_cache.demo.run import run

    report = run(_start_cache, show=click.echo)
    sys.exit(0 if report.ok else 1)


@contextmanager
def _start_cache(file: Path) -> Iterator[_Endpoint]:
    from mitm_cache.app import App, run_in_thread
    from mitm_cache.config import load
    from mitm_cache.workers.logs import configure_logging

    configure_logging()
    # The table is what the demo shows; the access lines go to a file beside the configuration.
    with (file.parent / "access.log").open("w") as output, run_in_thread(App(load(file=file), output=output)) as app:
        host, port = app.bound.address("tls")
        yield _Endpoint(host, port, app.authority.certificate_path)
