"""dockerd: `daemon.json`, its own folders of certificates, and flags that would clash with them."""

import json
import re
from typing import Any

from mitm_cache.errors import ConfigError
from mitm_cache.node.files import encode
from mitm_cache.node.model import Draft, Files, Settings, Store, Trust, Way, reload
from mitm_cache.registries import DOCKER_HUB

DAEMON = "/etc/docker/daemon.json"
CERTIFICATES = "/etc/docker/certs.d"
FLAGS = (
    "/etc/default/docker",
    "/etc/sysconfig/docker",
    "/etc/conf.d/docker",
    "/etc/systemd/system/docker.service",
    "/usr/lib/systemd/system/docker.service",
    "/lib/systemd/system/docker.service",
)
DROP_INS = "/etc/systemd/system/docker.service.d"
MIRRORS, INSECURE = "registry-mirrors", "insecure-registries"

type Document = dict[str, Any]


def plan_docker(draft: Draft, settings: Settings, files: Files) -> None:
    """The mirror for Docker Hub where the CA is not in the system's store, and registries marked insecure."""
    in_store = settings.needs_ca and settings.store is Store.SYSTEM
    if in_store:
        return  # names or proxy, and the store: dockerd has nothing to be told
    wanted: dict[str, list[str]] = {MIRRORS: [f"http://{mirror}" for mirror in settings.mirrors]}
    if settings.way is Way.MIRROR:
        draft.note("dockerd asks a mirror for Docker Hub's images only. --way hosts and --way connect serve them all.")
    else:
        draft.note(
            "dockerd never takes Docker Hub as insecure, nor by a CA of its own: it gets the cache as its mirror."
        )
    if settings.way is not Way.MIRROR and settings.trust is Trust.INSECURE:
        wanted[INSECURE] = client_names(settings)
        draft.note("Credentials for these registries travel unprotected between node and cache.")
    if settings.needs_ca and settings.certificate is not None:
        for name in client_names(settings):
            draft.put(f"{CERTIFICATES}/{name}/mitm-cache.crt", settings.certificate.pem)
    _refuse_flags(files, list(wanted))
    draft.put(DAEMON, merge(files.read(DAEMON), wanted), reload("docker"))


def client_names(settings: Settings) -> list[str]:
    """The names of all registries but Docker Hub."""
    return [name for one in settings.known if one.name != DOCKER_HUB.name for name in one.hosts]


def merge(text: str | None, wanted: dict[str, list[str]]) -> str:
    """`daemon.json` with these values at the front of its lists; what it has is kept. Raises ConfigError."""
    document = parse(text)
    for key, values in wanted.items():
        there = document.get(key, [])
        if not isinstance(there, list) or not all(isinstance(value, str) for value in there):
            raise ConfigError(f"{DAEMON}: {key} is not a list of texts")
        # dockerd asks mirrors in their order.
        first = [value for value in values if value.rstrip("/") not in {other.rstrip("/") for other in there}]
        document[key] = first + there
    if text is not None and document == parse(text):
        return text
    indent = re.search(r"^([ \t]+)\S", text or "", re.MULTILINE)
    return _write(document, indent[1] if indent else 2)


def parse(text: str | None) -> Document:
    """The document; an empty file is none. Raises ConfigError."""
    if text is None or not text.strip():
        return {}
    try:
        document = json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{DAEMON} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{DAEMON} is not a JSON object")
    return document


def _write(document: Document, indent: str | int | None) -> str:
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    try:
        encode(text)
    except UnicodeEncodeError:  # half of a character (a surrogate), which JSON can only escape
        text = json.dumps(document, indent=indent)
    return f"{text}\n"


def _without_repetition(pairs: list[tuple[str, Any]]) -> Document:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key is there twice")
    return document


def take_out_daemon(before: str | None, after: str, now: str) -> str | None:
    """Our values taken out of a `daemon.json` that was changed since; None where it is no such file any more."""
    try:
        old, ours, document = parse(before), parse(after), parse(now)
    except ConfigError:
        return None
    for key in (MIRRORS, INSECURE):
        added = [value for value in ours.get(key, []) if value not in old.get(key, [])]
        there = document.get(key)
        if added and isinstance(there, list):
            kept = [value for value in there if value not in added]
            if kept or key in old:
                document[key] = kept
            else:
                del document[key]
    if not document and before is None:
        return ""
    indent = re.search(r"^([ \t]+)\S", now, re.MULTILINE)
    return _write(document, indent[1] if indent else None)


def _refuse_flags(files: Files, keys: list[str]) -> None:
    """dockerd does not start when a setting is both a flag and in daemon.json."""
    drop_ins = [f"{DROP_INS}/{name}" for name in files.names(DROP_INS) if name.endswith(".conf")]
    for path in (*FLAGS, *drop_ins):
        lines = [line for line in (files.read(path) or "").splitlines() if not line.lstrip().startswith(("#", ";"))]
        for key in keys:
            flag = {MIRRORS: "--registry-mirror", INSECURE: "--insecure-registry"}[key]
            if any(flag in line for line in lines):
                raise ConfigError(
                    f"{path} gives dockerd {flag}, and with {key} in {DAEMON} too it would not start: move the flag's "
                    "value there first"
                )
