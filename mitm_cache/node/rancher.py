"""k3s, RKE2 and k3d: `registries.yaml`, from which they write their containerd's settings when they start."""

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mitm_cache.errors import ConfigError
from mitm_cache.node.model import Draft, Files, Settings, Store, Target, Trust, Way, restart
from mitm_cache.node.services import installed

FILES = {Target.K3S: "/etc/rancher/k3s/registries.yaml", Target.RKE2: "/etc/rancher/rke2/registries.yaml"}
CERTIFICATE = "/etc/mitm-cache-setup/ca.crt"
ALL = "*"


def plan_rancher(draft: Draft, settings: Settings, files: Files) -> None:
    """Mirrors for all registries, or trust for each of the known ones; what is there is kept."""
    if settings.way is not Way.MIRROR and settings.trust is Trust.CA and settings.store is Store.SYSTEM:
        return
    path = settings.file if settings.target is Target.K3D else FILES[settings.target]
    text = files.read(path)
    document = read_yaml(path, text)
    if settings.way is Way.MIRROR:
        _add_mirrors(path, document, settings, draft)
    else:
        _add_trust(path, document, settings)
        if settings.certificate is not None:
            draft.put(CERTIFICATE, settings.certificate.pem)
    draft.put(path, write_yaml(document, text), *map(restart, installed(settings.target, files)))
    if settings.target is Target.K3D:
        draft.note(f"k3d reads it when a cluster is made: k3d cluster create --registry-config {path}")


def _add_mirrors(path: str, document: Any, settings: Settings, draft: Draft) -> None:
    mirrors = mapping(path, document, "mirrors")
    endpoints = sequence(path, mapping(path, mirrors, ALL), "endpoint")
    for place, mirror in enumerate(f"http://{mirror}" for mirror in settings.mirrors):
        if mirror not in endpoints:
            endpoints.insert(place, mirror)
    for name in settings.local:
        own = sequence(path, mapping(path, mirrors, name), "endpoint")
        own[:0] = [mirror for mirror in (f"http://{one}" for one in settings.mirrors) if mirror not in own]
    names = {name for one in settings.known for name in one.hosts} - set(settings.local)
    others = sorted(names.intersection(str(name) for name in mirrors))
    if others:
        draft.note(f"{path} has mirrors for {', '.join(others)}, which are used instead of those for {ALL!r}.")


def _add_trust(path: str, document: Any, settings: Settings) -> None:
    configs = mapping(path, document, "configs")
    key, value = ("ca_file", CERTIFICATE) if settings.trust is Trust.CA else ("insecure_skip_verify", True)
    for name in (name for one in settings.known for name in one.hosts):
        tls = mapping(path, mapping(path, configs, name), "tls")
        if tls.setdefault(key, value) != value:
            raise ConfigError(f"{path} has another {key} for {name}: take it out first")


def read_yaml(path: str, text: str | None) -> Any:
    """A document whose comments and order are kept. Raises ConfigError unless it is a mapping."""
    try:
        document = _yaml().load(text or "")
    except (YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:  # the last are ruamel's own
        problem = getattr(error, "problem", None) or error
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{path} is not YAML: {problem}{f', line {mark.line + 1}' if mark else ''}") from error
    if document is None:
        document = _yaml().load("{}")
        document.fa.set_block_style()
    if not isinstance(document, dict):
        raise ConfigError(f"{path} is not a mapping")
    return document


def write_yaml(document: Any, text: str | None) -> str:
    """The document as text, in the form of the text that it was read from."""
    # Lists may stand below their key or indented.
    flat = re.search(r"^( *)[^\s#-].*:[ ]*\n\1- ", text or "", re.MULTILINE)
    yaml, stream = _yaml(), io.StringIO()
    yaml.indent(mapping=2, sequence=2 if flat else 4, offset=0 if flat else 2)
    yaml.dump(document, stream)
    # A file of comments only is no document, but they stay.
    comments = text if text and _yaml().load(text) is None else ""
    return comments + ("\n" if comments and not comments.endswith("\n") else "") + stream.getvalue()


def _yaml() -> YAML:
    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.width = 4096  # long lines stay as they are
    return yaml


def mapping(path: str, document: Any, key: str) -> Any:
    """The mapping at a key, made if there is none. Raises ConfigError where there is something else."""
    if document.get(key) is None:
        document[key] = type(document)()
    if not isinstance(document[key], dict):
        raise ConfigError(f"{path}: {key} is not a mapping")
    return document[key]


def sequence(path: str, document: Any, key: str) -> Any:
    """The list at a key, made if there is none. Raises ConfigError where there is something else."""
    if document.get(key) is None:
        document[key] = []
    if not isinstance(document[key], list):
        raise ConfigError(f"{path}: {key} is not a list")
    return document[key]
