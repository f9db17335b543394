"""containerd: `certs.d/*/hosts.toml`, and `config_path` in `config.toml`, which makes its CRI plugin read them.

Keys by containerd's docs/hosts.md and docs/cri/config.md. `config_path` is edited where the plugin's table is:
containerd 1.x lets a plugin's table in an imported file replace the whole table of the main file, so a file of our own
would take the plugin's other settings away.
"""

import posixpath
from collections.abc import Sequence

from mitm_cache.errors import ConfigError
from mitm_cache.node.model import Draft, Files, Settings, Store, Trust, Way, restart
from mitm_cache.node.tomls import Table, quoted, read_toml, set_text, table_at

CONFIG = "/etc/containerd/config.toml"
CERTIFICATES = "/etc/containerd/certs.d"
DEFAULT = "_default"
OLD_PLUGIN, NEW_PLUGIN = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"
"""Where the registry's settings are in configurations of version 2 (containerd 1.x), and of 3 (2.0) and 4 (2.3).

Each containerd reads the older versions too.
"""


def plan_containerd(draft: Draft, settings: Settings, files: Files) -> None:
    """hosts.toml files as far as the way and the trust need them, and the way to them."""
    if not uses_hosts_files(settings):
        return
    folder = plan_config(draft, settings, files)
    plan_folder(draft, settings, files, folder)


def uses_hosts_files(settings: Settings) -> bool:
    """Whether containerd has anything to be told: with the CA in the system's store it has not."""
    return settings.way is Way.MIRROR or settings.trust is Trust.INSECURE or settings.store is Store.CLIENT


def plan_config(draft: Draft, settings: Settings, files: Files) -> str:
    """Set `config_path` to one folder where it is not set so; that folder.

    containerd 1.x reads a list of folders. From 2.1 on the CRI plugin pulls by the transfer service, unless it is set
    otherwise, which takes a list for one folder's name and finds no hosts.toml. The default of 2.2 and 2.3 is a list.
    """
    main = files.read(CONFIG)
    tables = read_toml(CONFIG, main)
    version = _version(tables, settings.containerd)
    if "cri" in _disabled(tables) or {OLD_PLUGIN, NEW_PLUGIN} & _disabled(tables):
        draft.note(f"{CONFIG} disables CRI, so no kubelet pulls here; for ctr say --hosts-dir {CERTIFICATES}.")
        return CERTIFICATES
    plugin, path, text = _plugin(version), CONFIG, main or ""
    newer = version >= 3 or (settings.containerd or 1) >= 2
    for imported in _imports(tables, files):
        inside = files.read(imported)
        document = read_toml(imported, inside)
        own = _plugin(document.get("version", version))
        if table_at(document, (*own, "registry") if newer else own):  # 2.x merges tables, 1.x replaces them
            plugin, path, text = own, imported, inside or ""  # the last one counts
    registry = table_at(read_toml(path, text), (*plugin, "registry"))
    _refuse_old_settings(path, registry)
    there = registry.get("config_path")
    folder, *others = there.split(":") if isinstance(there, str) and there else [CERTIFICATES]
    if there and not (others and newer):
        return folder
    passed = [other for other in others if files.names(other)]
    if passed:
        draft.note(f"{path}: containerd 2 reads one folder, no list; not read any more: {', '.join(passed)}.")
    if not tables and path == CONFIG:
        text += f"{'' if not text or text.endswith('\n') else '\n'}version = {version}\n"
    edited = set_text(path, text, (*plugin, "registry"), "config_path", folder)
    draft.put(path, edited, restart("containerd"))
    return folder


def _plugin(version: object) -> tuple[str, str]:
    """Where a file of this version has the registry's settings: 2.x migrates each imported file by itself."""
    return "plugins", NEW_PLUGIN if isinstance(version, int) and version >= 3 else OLD_PLUGIN


def _version(tables: Table, containerd: int | None) -> int:
    """The version of the configuration; of a new one, what the containerd that is installed writes."""
    if not tables:
        return 3 if (containerd or 1) >= 2 else 2
    version = tables.get("version", 1)
    if version in (2, 3, 4):
        return int(version)
    if version == 1 and _disabled(tables):  # what Docker's package installs: nothing but disabled_plugins = ["cri"]
        return 1
    raise ConfigError(
        f"{CONFIG} is of version {version}; allowed here: 2, 3 and 4. `containerd config migrate` writes it anew"
    )


def _disabled(tables: Table) -> set[str]:
    disabled = tables.get("disabled_plugins", [])
    return {str(name) for name in disabled} if isinstance(disabled, list) else set()


def _imports(tables: Table, files: Files) -> list[str]:
    """The files that the main one imports, in containerd's order: patterns have their stars in the last part."""
    found: list[str] = []
    imports = tables.get("imports", [])
    for pattern in imports if isinstance(imports, list) else []:
        whole = posixpath.join(posixpath.dirname(CONFIG), str(pattern))
        folder, last = posixpath.split(whole)
        prefix, star, suffix = last.partition("*")
        if not star:
            found.append(whole)
            continue
        names = [name for name in files.names(folder) if name.startswith(prefix) and name.endswith(suffix)]
        found += [f"{folder}/{name}" for name in names]
    return found


def _refuse_old_settings(path: str, registry: Table) -> None:
    """containerd does not start with both kinds of settings."""
    configs = table_at(registry, ("configs",))
    old = ["registry.mirrors"] if registry.get("mirrors") else []
    old += ["registry.configs.*.tls"] if any(table_at(configs, (name,)).get("tls") for name in configs) else []
    if old:
        raise ConfigError(
            f"{path} has {' and '.join(old)}, which containerd takes for an error together with config_path: move "
            f"that to hosts.toml files under {CERTIFICATES} first, or use --way hosts with --trust ca"
        )


def plan_folder(draft: Draft, settings: Settings, files: Files, folder: str) -> None:
    """The hosts.toml files under a folder. What others have put there stays, and wins over `_default`."""
    names = {name for one in settings.known for name in one.hosts}
    passed = [name for name in files.names(folder) if name in names and _is_others(f"{folder}/{name}", files)]
    if settings.way is not Way.MIRROR and settings.trust is Trust.INSECURE:
        # By name, not by default: what does not go through the cache stays verified.
        for name in sorted(names):
            _put(draft, files, f"{folder}/{name}/hosts.toml", ["skip_verify = true"], [])
        draft.note("Credentials for these registries travel to the cache unverified.")
        return
    if settings.way is Way.MIRROR:
        hosts = [line for mirror in settings.mirrors for line in host_table(mirror)]
        _put(draft, files, f"{folder}/{DEFAULT}/hosts.toml", [], hosts)
        for name in settings.local:
            _put(draft, files, f"{folder}/{name}/hosts.toml", *local_table(settings.mirrors))
    elif settings.certificate is not None:
        path = f"{folder}/{DEFAULT}/mitm-cache.pem"
        draft.put(path, settings.certificate.pem)
        _put(draft, files, f"{folder}/{DEFAULT}/hosts.toml", [f"ca = {quoted(path)}"], [])
    if passed:
        draft.note(f"{folder} has files for {', '.join(passed)}, which containerd reads instead of {DEFAULT}'s.")


def _is_others(folder: str, files: Files) -> bool:
    """Whether a registry's folder is not ours: containerd takes any, with hosts.toml or without, before the default."""
    return files.names(folder) != ("hosts.toml",) or files.read(f"{folder}/hosts.toml") is not None


def host_table(mirror: str) -> list[str]:
    """The lines for one cache as a mirror; containerd adds ?ns=REGISTRY itself."""
    return [f"[host.{quoted(f'http://{mirror}')}]", '  capabilities = ["pull", "resolve"]']


def local_table(mirrors: Sequence[str]) -> tuple[list[str], list[str]]:
    """The lines for a registry that is the caches themselves: keys at the top, and hosts. Where none has an image,
    containerd does not go on to what its name means on the node."""
    *first, last = mirrors
    return [f"server = {quoted(f'http://{last}')}"], [line for mirror in first for line in host_table(mirror)]


def _put(draft: Draft, files: Files, path: str, roots: list[str], hosts: list[str]) -> None:
    """Our lines in a hosts.toml: keys at the top, hosts before the others, since containerd asks them in this order."""
    text = files.read(path) or ""
    before = read_toml(path, text)
    ours = read_toml("ours", "\n".join([*roots, *hosts]))
    clash = sorted(set(before) & set(ours) - {"host"})
    clash += sorted(set(table_at(before, ("host",))) & set(table_at(ours, ("host",))))
    if clash:
        raise ConfigError(f"{path} sets {', '.join(clash)} already: take that out first")
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    first = next((number for number, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    top, rest = "".join(lines[:first]), "".join(lines[first:])
    hosts = hosts if hosts or "host" in before else ["[host]"]  # containerd 1.x takes a file without for an error
    ours.setdefault("host", {})
    edited = "".join(f"{line}\n" for line in roots) + top + "".join(f"{line}\n" for line in hosts) + rest
    expected = (
        before | ours | ({"host": {**ours.get("host", {}), **before.get("host", {})}} if "host" in before else {})
    )
    if read_toml(path, edited) != expected:
        raise ConfigError(
            f"{path} is written in a way that cannot be edited safely: add these lines by hand: {roots + hosts}"
        )
    draft.put(path, edited)
