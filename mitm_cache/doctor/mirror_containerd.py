"""What containerd asks in a registry's stead, by `hosts.toml`, and k3s and RKE2, which write that from their own file.

By containerd's docs/hosts.md: a registry's folder, else `_default`; `/v2` is added to a path unless `override_path`;
`?ns=` names the registry wherever a host is asked that is not its own.
"""

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mitm_cache.doctor.finding import skip, warn
from mitm_cache.doctor.mirror import Files, Mirror, is_url, texts
from mitm_cache.doctor.processes import Process
from mitm_cache.doctor.scene import Scene, Wanted, target
from mitm_cache.errors import ConfigError
from mitm_cache.node.containerd import CERTIFICATES, CONFIG, DEFAULT, NEW_PLUGIN, OLD_PLUGIN
from mitm_cache.node.rancher import ALL, read_yaml
from mitm_cache.node.rancher import FILES as RANCHER
from mitm_cache.node.tomls import Table, table_at


def read_hosts_files(files: Files, daemons: Sequence[Process], wanted: Iterable[Wanted]) -> list[Mirror]:
    """The mirrors of `certs.d`; a hint where there are some and CRI is not told of the folder."""
    named = [one.option("--config") or one.option("-c") for one in daemons if one.name == "containerd"]
    configs = [Path(name) for name in named if name] or [files.scene.path(CONFIG)]
    found: dict[Mirror, None] = {}
    asked = list(wanted)
    for config in dict.fromkeys(configs):
        folder = _config_path(files, config)
        folders = find_folders(files.scene, folder or CERTIFICATES)
        mirrors = [mirror for one in asked for mirror in _of_registry(files, folders, one)]
        if mirrors and folder == "" and config.is_file():
            words = f"no config_path: a kubelet's pulls may not read {CERTIFICATES}"
            places = f'[plugins."{OLD_PLUGIN}".registry] (version 2) or [plugins."{NEW_PLUGIN}".registry] (version 3)'
            cure = f'config_path = "{CERTIFICATES}" in {places}, then systemctl restart containerd'
            files.findings.append(warn("cache", str(config), words, cure))
        found.update(dict.fromkeys(mirrors))
    return list(found)


def _config_path(files: Files, config: Path) -> str | None:
    """`config_path` as CRI has it, "" where it is not set, None where CRI is not there to read it."""
    main = files.toml(config)
    if {"cri", OLD_PLUGIN, NEW_PLUGIN} & set(texts(main.get("disabled_plugins"))):
        return None
    imported: list[Path] = []
    for pattern in texts(main.get("imports")):
        whole = files.scene.path(pattern) if pattern.startswith("/") else config.parent / pattern
        imported += sorted(whole.parent.glob(whole.name))
    value = ""
    for path in (config, *imported):
        for plugin in (OLD_PLUGIN, NEW_PLUGIN):
            told = table_at(files.toml(path), ("plugins", plugin, "registry")).get("config_path")
            value = told if isinstance(told, str) and told else value  # the last one counts
    return value


def find_folders(scene: Scene, config_path: str = CERTIFICATES) -> list[Path]:
    """The folders that hold a folder for each registry."""
    return [scene.path(folder) for folder in config_path.split(":") if folder]


def find_folder(folders: Iterable[Path], name: str) -> Path | None:
    """The folder that containerd reads for a registry: the first that is there, with hosts.toml or without."""
    host, colon, port = name.partition(":")
    names = [*([f"{host}_{port}_"] if colon else []), name, DEFAULT]
    return next((folder / one for folder in folders for one in names if (folder / one).is_dir()), None)


def _of_registry(files: Files, folders: Sequence[Path], wanted: Wanted) -> Iterator[Mirror]:
    folder = find_folder(folders, wanted.registry.name)
    if folder is None:
        return
    path = folder / "hosts.toml"
    document = files.toml(path)
    hosts = document.get("host")
    places: list[tuple[str, Table]] = [
        (name, table) for name, table in (hosts if isinstance(hosts, dict) else {}).items() if isinstance(table, dict)
    ]
    if isinstance(server := document.get("server"), str):
        places.append((server, document))  # what is asked when no other answers
    for name, table in places:
        if "pull" not in texts(table.get("capabilities", ["pull"])):
            continue
        url = _url(name, wanted, whole=table.get("override_path") is True)
        if url:
            named = [table["ca"]] if isinstance(table.get("ca"), str) else texts(table.get("ca"))
            roots = tuple(files.scene.path(one) if one.startswith("/") else folder / one for one in named)
            yield Mirror(
                client="containerd",
                source=path,
                wanted=wanted,
                url=url,
                insecure=table.get("skip_verify") is True,
                roots=roots,
            )


def _url(server: str, wanted: Wanted, *, whole: bool) -> str:
    """What is asked of a host; "" for the registry's own, and for what is no URL."""
    url = server if "://" in server else f"https://{server}"
    if not is_url(url):
        return ""
    parts = urlsplit(url)
    if parts.netloc in wanted.registry.names or parts.hostname in wanted.registry.names:
        return ""
    path = posixpath.normpath(parts.path).rstrip("/") if parts.path else ""
    if not whole and not path.endswith("/v2"):
        path += "/v2"
    below = target(wanted).removeprefix("/v2")
    return f"{parts.scheme}://{parts.netloc}{path}{below}?ns={wanted.registry.name}"


def read_rancher(files: Files, wanted: Iterable[Wanted]) -> Iterator[Mirror]:
    """The mirrors of k3s and RKE2; a path of an endpoint is used as it stands."""
    asked = list(wanted)
    for client, name in RANCHER.items():
        path = files.scene.path(name)
        text = files.text(path)
        if text is None:
            continue
        try:
            document = read_yaml(str(path), text)
        except ConfigError as error:
            files.broken(path, error)
            continue
        mirrors, configs = _mapping(document, "mirrors"), _mapping(document, "configs")
        for one in asked:
            place = mirrors.get(one.registry.name) or _mapping(mirrors, ALL)
            if _mapping(place, "rewrite"):
                words = f"the mirror of {one.registry.name} rewrites names, which is not followed here"
                files.findings.append(skip("pulls", str(path), words, "pull an image by crictl pull"))
                continue
            for endpoint in texts(place.get("endpoint") if isinstance(place, dict) else None):
                url = _url(endpoint, one, whole=urlsplit(endpoint).path not in ("", "/")) if is_url(endpoint) else ""
                if url:
                    tls = _mapping(_mapping(configs, urlsplit(url).netloc), "tls")
                    ca = tls.get("ca_file")
                    yield Mirror(
                        client=str(client),
                        source=path,
                        wanted=one,
                        url=url,
                        insecure=tls.get("insecure_skip_verify") is True,
                        roots=(files.scene.path(ca),) if isinstance(ca, str) else (),
                    )


def _mapping(document: Any, key: str) -> Table:
    value = document.get(key) if isinstance(document, dict) else None
    return value if isinstance(value, dict) else {}
