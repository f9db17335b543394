"""podman, buildah, skopeo and CRI-O: `registries.conf.d`, and a folder of certificates for each registry."""

from collections.abc import Iterator

from mitm_cache.errors import ConfigError
from mitm_cache.node.model import Draft, Files, Settings, Step, Store, Target, Trust, Way, reload
from mitm_cache.node.tomls import quoted, read_toml, tables_of

REGISTRIES = "/etc/containers/registries.conf"
FOLDER = f"{REGISTRIES}.d"
FILE = f"{FOLDER}/mitm-cache.conf"
CERTIFICATES = "/etc/containers/certs.d"


def plan_containers(draft: Draft, settings: Settings, files: Files) -> None:
    """A drop-in with a table for each registry: its mirrors, or that it is not verified; or its certificates."""
    if settings.way is not Way.MIRROR and settings.trust is Trust.CA:
        if settings.store is Store.CLIENT and settings.certificate is not None:
            for name in (name for one in settings.known for name in one.hosts):
                draft.put(f"{CERTIFICATES}/{name}/mitm-cache.crt", settings.certificate.pem)
        return
    taken = _taken(files)
    lines = ["# Made by mitm-cache setup."]
    for one in settings.known:
        for name in one.hosts:
            if name in taken:
                draft.note(f"{taken[name]} has a table for {name}, which is left as it is: {name} goes past the cache.")
            elif settings.way is Way.MIRROR and ":" in (one.prefix or one.name):
                draft.note(f"{name} goes past the cache: no image name holds the port of {one.name} in its path.")
            else:
                lines += ["", *_table(settings, name, one.prefix or one.name)]
    steps: tuple[Step, ...] = (reload("crio"),) if settings.target is Target.CRIO else ()
    draft.put(FILE, "\n".join(lines) + "\n", *steps)
    if settings.way is not Way.MIRROR:
        draft.note("Credentials for these registries travel to the cache unverified.")


def _table(settings: Settings, name: str, prefix: str) -> Iterator[str]:
    yield "[[registry]]"
    yield f"location = {quoted(name)}"
    if settings.way is not Way.MIRROR:
        yield "insecure = true"
        return
    for mirror in settings.mirrors:
        yield "[[registry.mirror]]"
        yield f"location = {quoted(f'{mirror}/{prefix}')}"
        yield "insecure = true  # the mirror listener speaks plain HTTP"


def _taken(files: Files) -> dict[str, str]:
    """Which file has a table for a prefix already: the last file's table would replace it whole."""
    found: dict[str, str] = {}
    drop_ins = [f"{FOLDER}/{name}" for name in files.names(FOLDER) if name.endswith(".conf")]
    for path in (REGISTRIES, *drop_ins):
        tables = read_toml(path, None if path == FILE else files.read(path))
        if "registries" in tables:
            raise ConfigError(
                f"{path} is of the old form ([registries.search]), which cannot be mixed with [[registry]]"
            )
        for entry in tables_of(tables.get("registry")):
            prefix = entry.get("prefix") or entry.get("location")
            if isinstance(prefix, str):
                found[prefix] = path
    return found
