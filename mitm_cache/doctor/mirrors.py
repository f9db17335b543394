"""All mirrors that the files of a node name, by the clients that read them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mitm_cache.doctor.mirror import Files, Mirror, is_url, texts
from mitm_cache.doctor.mirror_containerd import read_hosts_files, read_rancher
from mitm_cache.doctor.mirror_containers import read_registries
from mitm_cache.doctor.processes import Process
from mitm_cache.doctor.scene import Scene, Wanted, target
from mitm_cache.registries import DOCKER_HUB

DOCKERD = "dockerd"


def read_mirrors(
    files: Files, daemons: Sequence[Process], daemon_json: Path, docker: Mapping[str, Any]
) -> tuple[Mirror, ...]:
    """What each client would ask for the images that are looked at, and for the other registries' roots."""
    wanted = _wanted(files.scene)
    return (
        *_of_dockerd(files, daemon_json, docker, wanted),
        *read_hosts_files(files, daemons, wanted),
        *read_rancher(files, wanted),
        *read_registries(files, wanted),
    )


def _wanted(scene: Scene) -> list[Wanted]:
    images = scene.images()
    there = {one.registry.name for one in images}
    others = {one.name: Wanted(one) for one in (*scene.known, *scene.registries) if one.name not in there}
    return [*images, *others.values()]


def _of_dockerd(files: Files, source: Path, docker: Mapping[str, Any], wanted: Sequence[Wanted]) -> list[Mirror]:
    """dockerd asks a mirror for Docker Hub only, in Docker Hub's own form."""
    found = []
    hub = [one for one in wanted if one.registry.name == DOCKER_HUB.name] or [Wanted(DOCKER_HUB)]
    for base in texts(docker.get("registry-mirrors")):
        for one in hub if is_url(base) else ():
            host = base.partition("//")[2].partition("/")[0]
            insecure = host in texts(docker.get("insecure-registries"))
            url, roots = f"{base.rstrip('/')}{target(one)}", files.certificates(host, "docker")
            found.append(Mirror(client=DOCKERD, source=source, wanted=one, url=url, insecure=insecure, roots=roots))
    return found
