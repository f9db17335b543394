"""What podman, buildah, skopeo and CRI-O ask in a registry's stead, by `registries.conf` and its drop-ins.

By containers-registries.conf(5): of a prefix the last file's table counts, of an image's prefixes the longest.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from mitm_cache.doctor.mirror import Files, Mirror, is_url
from mitm_cache.doctor.scene import Wanted, target
from mitm_cache.node.containers import FOLDER, REGISTRIES
from mitm_cache.node.tomls import Table, tables_of

CLIENT = "podman and CRI-O"


def read_registries(files: Files, wanted: Iterable[Wanted]) -> Iterator[Mirror]:
    """The mirrors of each registry, and the other location that a table may give it."""
    entries: dict[str, tuple[Path, Table]] = {}
    for path in (files.scene.path(REGISTRIES), *sorted(files.scene.path(FOLDER).glob("*.conf"))):
        for entry in tables_of(files.toml(path).get("registry")):
            prefix = entry.get("prefix") or entry.get("location")
            if isinstance(prefix, str):
                entries[prefix] = path, entry
    for one in wanted:
        name = one.registry.name
        reference = f"{name}/{one.image}" if one.image else name
        taken, prefix = max(((_taken(prefix, reference), prefix) for prefix in entries), default=(0, ""))
        if taken:
            path, entry = entries[prefix]
            yield from _of_entry(files, path, entry, one, reference[taken:])


def _taken(prefix: str, reference: str) -> int:
    """How much of a reference a prefix stands for; 0 where it does not."""
    host = reference.partition("/")[0]
    if prefix.startswith("*."):
        return len(host) if host.endswith(prefix[1:]) else 0
    ends = ("", "/", ":", "@") if "/" in prefix else ("", "/")
    return len(prefix) if reference.startswith(prefix) and reference[len(prefix) :][:1] in ends else 0


def _of_entry(files: Files, path: Path, entry: Table, wanted: Wanted, rest: str) -> Iterator[Mirror]:
    for place in (*tables_of(entry.get("mirror")), entry):
        location = place.get("location")
        if not isinstance(location, str) or not location:
            continue
        host, _, below = f"{location}{rest}".partition("/")
        insecure = place.get("insecure") is True
        # Insecure is TLS without verifying, or none: the check asks in clear text first, and then by TLS.
        image = Wanted(wanted.registry, below) if wanted.image else wanted
        url = f"{'http' if insecure else 'https'}://{host}{target(image)}"
        if host not in wanted.registry.names and is_url(url):
            roots = files.certificates(host, "containers", "docker")
            yield Mirror(client=CLIENT, source=path, wanted=wanted, url=url, insecure=insecure, roots=roots)
