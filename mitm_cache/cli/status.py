"""`mitm-cache status`: ask the service how it is; read the data directory where none answers."""

import http.client
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import click

from mitm_cache.units import size

if TYPE_CHECKING:
    from mitm_cache.config import Config
    from mitm_cache.parsing import Endpoint

READY, NOT_READY, NOT_RUNNING = 0, 1, 3
SOON = timedelta(days=30)
TIMEOUT = 4.0
"""Seconds; the service itself gives its disk three."""
COUNTING = 2.0
"""Seconds that the images may be counted for: a container's health check has not much more."""
MAX_DOCUMENT = 1 << 20

type Document = Mapping[str, Any]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def status(config_of: "Callable[[], Config]", as_json: bool) -> None:
    """Tell how the service is, what it holds and what it has saved.

    The service is asked at listen.admin; where none answers, the data directory is read. The exit status is 0 when it
    runs and is ready, 1 when it runs and is not, and 3 when it does not run.
    """
    config = config_of()
    document, code = look(config)
    document = {**document, "images": images(config), **local(config)}
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo("\n".join(render(document)))
    sys.exit(code)


def look(config: "Config") -> tuple[Document, int]:
    """What there is to tell, and the exit status that says it."""
    trouble = "listen.admin is [], so nobody can be asked"
    for endpoint in endpoints(config):
        try:
            document = ask(endpoint)
        except ConnectionRefusedError:
            trouble = f"nobody answers at {endpoint}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            words = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            return read(config) | {"running": True, "trouble": f"{endpoint}: {words}"}, NOT_READY
        else:
            if os.path.realpath(str(document["data_dir"])) == os.path.realpath(config.data_dir):
                return document, READY if document["ready"] else NOT_READY
            trouble = f"at {endpoint} another service answers, whose data is in {document['data_dir']}"
    return read(config) | {"trouble": trouble}, NOT_RUNNING


def endpoints(config: "Config") -> "tuple[Endpoint, ...]":
    """Where the admin listener is, by the configuration."""
    from mitm_cache.config import HOSTS, PORTS
    from mitm_cache.parsing import Endpoint

    named = config.listen.get("admin", (Endpoint(HOSTS["admin"], PORTS["admin"][0]),))
    return tuple(Endpoint(_reachable(endpoint.host), endpoint.port) for endpoint in named)


def _reachable(host: str) -> str:
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what is listened on


def ask(endpoint: "Endpoint") -> dict[str, Any]:
    """The service's own account. Raises OSError, HTTPException or ValueError where there is none."""
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/status")
        response = connection.getresponse()
        content = response.read(MAX_DOCUMENT)
    finally:
        connection.close()
    if response.status != 200:
        words = content[:200].decode(errors="replace").strip()
        raise ValueError(f"it answered {response.status}: {words if words.isprintable() else response.reason}")
    try:
        document = json.loads(content)
    except ValueError as error:
        raise ValueError("it is not mitm-cache that answers there") from error
    if not isinstance(document, dict) or not {"running", "ready", "data_dir"} <= document.keys():
        raise ValueError("it is not mitm-cache that answers there")
    return document


def read(config: "Config") -> dict[str, Any]:
    """What the disk says. Nothing is made or changed."""
    document: dict[str, Any] = {"running": False, "ready": False, "version": version("mitm-cache")}
    document |= {"data_dir": str(config.data_dir), "listeners": [], **_blobs(config), "ca": _ca(config)}
    return document


def _blobs(config: "Config") -> dict[str, Any]:
    from mitm_cache.cache.blobs import Blobs

    folder = config.data_dir / "blobs"
    try:
        next(folder.iterdir(), None)  # measuring passes over what it cannot read
        count, size = Blobs(folder).measure()
        limit = config.max_size.of(shutil.disk_usage(folder).total)
    except OSError as error:
        return {"blobs": None, "limit": None, "data_dir_trouble": error.strerror}
    return {"blobs": {"count": count, "bytes": size}, "limit": limit}


def local(config: "Config") -> dict[str, Any]:
    """What the local registry holds, and is being pushed, of what it may; nothing where there is none."""
    from mitm_cache.cache.layout import Layout
    from mitm_cache.errors import StoreError
    from mitm_cache.local.space import measure

    if not config.local.names:
        return {}
    try:
        held = measure(Layout(config.data_dir, ""))
        limit = config.local.max_size.of(shutil.disk_usage(config.data_dir).total)
    except (StoreError, OSError):
        return {"local": None}
    return {"local": {"bytes": held, "limit": limit}}


def images(config: "Config") -> dict[str, Any] | None:
    """How many tags have something here, how it came, and what is pinned; None where that cannot be counted."""
    from mitm_cache.cache.tree import count_tags
    from mitm_cache.errors import StoreError

    try:
        tally = count_tags(config.data_dir, seconds=COUNTING)
    except (StoreError, OSError):
        return None
    if tally is None:
        return None
    origins = {origin.value: count for origin, count in sorted(tally.origins.items())}
    return {"count": tally.origins.total(), "pinned": tally.pinned, "origins": origins}


def _ca(config: "Config") -> dict[str, object]:
    from mitm_cache.admin.status import describe
    from mitm_cache.ca.rotation import Pair
    from mitm_cache.errors import ConfigError

    try:
        pair = Pair.load(config.ca_dir)
    except ConfigError as error:
        return {"trouble": error.message}
    return describe({role: each.describe() for role, each in pair.by_role(datetime.now(UTC)).items()})


def render(document: Document) -> Iterator[str]:
    """The document as aligned text."""
    for label, words in _rows(document):
        yield f"{label:<12} {words}"


def _rows(document: Document) -> Iterator[tuple[str, str]]:
    yield "state", _state(document)
    for name, answer in document.get("checks", {}).items():
        if answer != "ok":
            yield "", f"{name}: {answer}"
    yield "version", document["version"]
    trouble = document.get("data_dir_trouble")
    yield "data", f"{document['data_dir']} ({trouble})" if trouble else document["data_dir"]
    for each in document["listeners"]:
        host = f"[{each['address']}]" if ":" in each["address"] else each["address"]
        yield each["name"], f"{host}:{each['port']}"
    yield "blobs", _held(document)
    yield "images", _images(document.get("images"))
    if "local" in document:
        held = document["local"]
        yield "local", f"{size(held['bytes'])} of {size(held['limit'])}" if held else "not counted"
    if "requests" in document:
        yield from _traffic(document)
    authority = document["ca"]
    if "not_after" in authority:
        yield "CA", _until(authority)
        for role in ("next", "previous"):
            if role in authority:
                yield "", f"{role}: {_until(authority[role])}, {authority[role]['fingerprint'][:23]}…"
    else:
        yield "CA", authority["trouble"]


def _until(authority: Mapping[str, str]) -> str:
    end = datetime.fromisoformat(authority["not_after"])
    left = end - datetime.now(UTC)
    words = f"valid until {end:%Y-%m-%d}"
    return words if left >= SOON else f"{words}: {max(left.days, 0)} days are left"


def _state(document: Document) -> str:
    if not document["running"]:
        return f"not running: {document['trouble']}"
    if "trouble" in document:
        return f"not ready: {document['trouble']}"
    word = "ready" if document["ready"] else "not ready"
    workers = [pid for pid in document.get("workers", ()) if pid != document["pid"]]
    of = f" with {', '.join(map(str, workers))}" if workers else ""
    return f"{word}, process {document['pid']}{of}, since {document['started']}"


def _held(document: Document) -> str:
    held, limit = document["blobs"], document["limit"]
    of = "" if limit is None else f" of {size(limit)}"
    return f"{held['count']:,} files, {size(held['bytes'])}{of}" if held else f"not counted{of}"


def _images(counted: Mapping[str, Any] | None) -> str:
    if counted is None:
        return "not counted"
    origins = ", ".join(f"{count:,} {origin}" for origin, count in counted["origins"].items())
    return f"{counted['count']:,} tags{f' ({origins})' if origins else ''}, {counted['pinned']:,} pinned"


def _traffic(document: Document) -> Iterator[tuple[str, str]]:
    requests, moved, evicted = document["requests"], document["bytes"], document["evicted"]
    yield "requests", ", ".join(f"{count:,} {outcome}" for outcome, count in requests.items()) or "none yet"
    yield "in flight", f"{document['in_flight']:,}"
    yield "to clients", f"{size(moved['sent'])}, of which {size(moved['saved'])} saved upstream"
    yield "upstream", f"{size(moved['received'])} fetched"
    if moved.get("pushed"):
        yield "pushed", f"{size(moved['pushed'])} to the local registry"
    for name, absence in document.get("away", {}).items():
        yield "AWAY", f"{name}: for {timedelta(seconds=absence['seconds'])}: {absence['reason']}"
    for registry, quota in document.get("quotas", {}).items():
        of = "" if quota["limit"] is None else f" of {quota['limit']:,}"
        window = f" in {quota['window'] / 3600:g} h" if quota["window"] else ""
        yield "quota", f"{registry}: {quota['left']:,}{of} pulls left{window}"
    if evicted["count"]:
        yield "evicted", f"{evicted['count']:,} files, {size(evicted['bytes'])}"
    if uncached := document.get("uncached"):
        yield "UNCACHED", f"{uncached:,} pulls passed through: the disk is full, read-only or broken"
