"""The first page, once as HTML and once as text: what this is, and what to run on a node."""

import hashlib
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from textwrap import fill

from mitm_cache.registries import LOCAL
from mitm_cache.welcome.facts import Facts, Place
from mitm_cache.welcome.script import Script

FILES = {
    "/ca.crt": "the CA's certificate, PEM",
    "/ca.der": "the same, DER",
    "/setup.sh": "sets a node up, and undoes it",
    "/healthz": "200 while pulls are served, else 503",
}
UNDO = "sudo sh /var/lib/mitm-cache-node/setup.sh --undo"
_STYLE = (
    "body{font:1rem/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "pre{overflow-x:auto;padding:1rem;background:#8882}"
)
STYLE_HASH = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
"""By which the Content-Security-Policy lets this style in, and no other."""
_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to copy."""

    text: str


@dataclass(frozen=True, slots=True)
class Links:
    """Paths of this site, each with what is there."""

    paths: dict[str, str]


type Part = Words | Code | Links


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, and what is below it."""

    title: str
    parts: tuple[Part, ...]


def sections(facts: Facts, script: Script) -> Iterator[Section]:
    """The page, true for the listeners that are there."""
    yield Section(
        f"mitm-cache {facts.version}",
        (
            Words(
                "A cache in front of every container registry. Nodes that are set up for it pull through it; "
                "image names stay as they are."
            ),
            Links(FILES),
        ),
    )
    yield Section(
        "The CA",
        (
            Words("SHA-256 of its certificate:"),
            Code(facts.fingerprint),
            Words(
                "This page may have come unprotected. The fingerprint, and the SHA-256 in the lines below, are what "
                "'mitm-cache serve' prints when it starts; there, 'mitm-cache ca show' tells the first too."
            ),
        ),
    )
    if script.ways and facts.base:
        yield Section("Set a node up", tuple(_lines(script)))
    yield from _clients(facts, script)
    yield from _own(facts)
    yield Section(
        "Undo",
        (
            Words("Takes everything back that the script did, also when the cache is no more:"),
            Code(UNDO),
            Words("What was set by hand is taken out by hand. Then restart dockerd or containerd."),
        ),
    )


def _lines(script: Script) -> Iterator[Part]:
    words = {
        "hosts": "Every registry and every client, private images too: trusts the CA, and leads the registries' names "
        "here in /etc/hosts.",
        "mirror": "As a mirror, without the CA: containerd and podman for every registry, dockerd for Docker Hub. Such "
        "clients send a mirror no credentials.",
    }
    for way in script.ways:
        yield Words(words[way])
        yield Code(script.line(way))
    yield Words("As root, leave sudo out. Read the script first, if you like; it says what to restart.")


def _clients(facts: Facts, script: Script) -> Iterator[Section]:
    mirror, connect = facts.places.get("mirror"), facts.places.get("connect")
    docker: list[Part] = []
    containerd: list[Part] = []
    if mirror:
        docker += [Words("Docker Hub, in /etc/docker/daemon.json:"), Code(_daemon_json(mirror))]
        hosts = f'[host."http://{mirror}"]\n  capabilities = ["pull", "resolve"]'
        containerd += [
            Words("Every registry, in /etc/containerd/certs.d/_default/hosts.toml, where config_path names certs.d:"),
            Code(hosts),
        ]
    if connect:
        proxy = f"[Service]\nEnvironment=HTTPS_PROXY=http://{connect} NO_PROXY=localhost,127.0.0.1,YOUR.NETWORK"
        drop_in = (
            "Every registry by proxy, where the CA is trusted, in /etc/systemd/system/{}.service.d/mitm-cache.conf:"
        )
        docker += [Words(drop_in.format("docker")), Code(proxy)]
        containerd += [Words(drop_in.format("containerd")), Code(proxy)]
    if facts.for_names:
        trusted = Words("Nothing more, where the names lead here and the CA is trusted. Restart it once after that.")
        docker.insert(0, trusted)
        containerd.insert(0, trusted)
    if docker:
        yield Section("docker", tuple(docker))
        yield Section("containerd", tuple(containerd))
    yield from _podman(facts, mirror, connect)
    if mirror:
        endpoint = f'mirrors:\n  "*":\n    endpoint:\n      - "http://{mirror}"'
        yield Section(
            "k3s, RKE2",
            (Words("In /etc/rancher/k3s/registries.yaml, or rke2/registries.yaml; then restart it:"), Code(endpoint)),
        )
    if facts.base:
        yield Section("kind", tuple(_kind(facts, script)))


def _own(facts: Facts) -> Iterator[Section]:
    """The registry of one's own, where there is one."""
    local, mirror = facts.known.named(LOCAL), facts.places.get("mirror")
    names = list(local.hosts) if local else []
    if local and mirror:
        names += [f"{mirror}/{part}" for part in dict.fromkeys((local.prefix, local.name)) if part]
    if names:
        yield Section(
            "Images of your own",
            (
                Words("Pushed and pulled here, all of them under each of these names:"),
                Code("\n".join(names)),
                Code(f"docker tag app:1 {names[0]}/app:1 && docker push {names[0]}/app:1"),
                Words(
                    "Clients want TLS unless the name is localhost or they are told otherwise: the CA trusted as "
                    "above, or insecure-registries in /etc/docker/daemon.json, --tls-verify=false for podman and "
                    "skopeo. 'denied' and 'unauthorized' come with the reason; where this cache has users, pushing "
                    "needs a docker login."
                ),
            ),
        )


def _podman(facts: Facts, mirror: Place | None, connect: Place | None) -> Iterator[Section]:
    parts: list[Part] = []
    if facts.for_names:
        parts.append(Words("Nothing more, where the names lead here and the CA is trusted."))
    if mirror:
        parts += [
            Words("One registry, in /etc/containers/registries.conf.d/mitm-cache.conf (the script writes them all):"),
            Code(
                '[[registry]]\nprefix = "quay.io"\nlocation = "quay.io"\n'
                f'[[registry.mirror]]\nlocation = "{mirror}/quay.io"\ninsecure = true'
            ),
        ]
    if connect:
        parts += [
            Words("By proxy, where the CA is trusted:"),
            Code(f"HTTPS_PROXY=http://{connect} podman pull quay.io/prometheus/prometheus"),
        ]
    if parts:
        yield Section("podman, buildah, skopeo, CRI-O", tuple(parts))


def _kind(facts: Facts, script: Script) -> Iterator[Part]:
    if not script.ways:
        yield Words("Give kind HTTPS_PROXY when it makes the cluster, and its nodes the CA.")
        return
    yield Words("Every node is a container. On the machine that kind runs on:")
    yield Code(
        f"{script.fetch} && for node in $(kind get nodes); do\n"
        f'  docker exec -i "$node" sh -c \'cat >/run/setup.sh && sh /run/setup.sh {script.ways[0]} '
        f'--fingerprint {facts.fingerprint}\' <"$f"\n'
        '  docker exec "$node" systemctl restart containerd\ndone'
    )


def _daemon_json(mirror: Place) -> str:
    return f'{{"registry-mirrors": ["http://{mirror}"]}}'


def render_text(page: list[Section]) -> str:
    """For a terminal."""
    return "\n".join(_section_text(section) for section in page)


def _section_text(section: Section) -> str:
    lines = [section.title, "=" * len(section.title), ""]
    for part in section.parts:
        match part:
            case Words(text):
                lines += [fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False), ""]
            case Code(text):
                lines += [*(f"    {line}" for line in text.split("\n")), ""]
            case Links(paths):
                lines += [*(f"    {path:<10} {what}" for path, what in paths.items()), ""]
    return "\n".join(lines)


def render_html(page: list[Section]) -> str:
    """For a browser: no script, nothing from elsewhere."""
    title = escape(page[0].title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    body = "\n".join(_section_html(section, "h1" if n == 0 else "h2") for n, section in enumerate(page))
    head += f"<style>{_STYLE}</style>"
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def _section_html(section: Section, heading: str) -> str:
    parts = [f"<{heading}>{escape(section.title)}</{heading}>"]
    for part in section.parts:
        match part:
            case Words(text):
                parts.append(f"<p>{escape(text)}</p>")
            case Code(text):
                parts.append(f"<pre><code>{escape(text)}</code></pre>")
            case Links(paths):
                items = (
                    f'<li><a href="{escape(path)}">{escape(path)}</a> {escape(what)}</li>'
                    for path, what in paths.items()
                )
                parts.append(f"<ul>{''.join(items)}</ul>")
    return f"<section>{''.join(parts)}</section>"
