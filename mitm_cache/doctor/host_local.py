"""The registry for images of one's own, on the cache host: its names, certificate, room and daemon."""

import grp
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mitm_cache.ca.given import SOON, GivenCertificate
from mitm_cache.ca.rotation import Pair
from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.layout import Layout
from mitm_cache.config import Config
from mitm_cache.doctor import processes
from mitm_cache.doctor.finding import Finding, fail, ok, skip, warn
from mitm_cache.doctor.host_disk import ANEW, User, user_of
from mitm_cache.doctor.probes import HTTPS, Resolution, Way, ask, knock, resolve
from mitm_cache.doctor.scene import Scene
from mitm_cache.doctor.service import Service
from mitm_cache.errors import ConfigError, UpstreamError
from mitm_cache.local.space import measure
from mitm_cache.registries import LOCAL
from mitm_cache.units import size
from mitm_cache.upstream.route import is_own_address

UNIX = "unix://"
FULL = 0.9
"""The part of local.max_size from which on it is told that it ends."""
MAKE_ROOM = "mitm-cache rm local/NAME:TAG, and mitm-cache prune --unused; or more of local.max_size"
AS_ROOT = "sudo mitm-cache doctor --host"


def check_name(config: Config, service: Service, name: str) -> Iterator[Finding]:
    """Whether one of `local.names` leads to this cache, as this machine finds names."""
    host, _, port = name.partition(":")
    resolution = resolve([host])[host]
    heard = {}
    if service.alive:
        heard = {address: hear(name, address) for address in resolution.addresses}
    yield judge_name(name, resolution, heard, _listening(config, service, int(port or HTTPS)))


def hear(name: str, address: str) -> str:
    """What there is at an address in place of the cache's local registry, in words; "" where it answers."""
    _, colon, port = name.partition(":")
    way = Way("tls", address, int(port or HTTPS))
    door = knock(address, way.port)
    if door != "open":
        return f"port {way.port} is {door}"
    words = ""
    for scheme in ("http", "https") if colon else ("https",):
        reply = ask(way, "GET", f"{scheme}://{name}/v2/")
        fields = reply.headers
        # At a mirror a name that is nobody's means Docker Hub.
        if fields.get("x-cache") == "LOCAL" and fields.get("oci-namespace", LOCAL) == LOCAL:
            return ""
        words = reply.trouble or f"another server answers {reply.status}"
    return words


def _listening(config: Config, service: Service, port: int) -> list[str]:
    """The addresses at which the cache listens on a port, for clients of a registry."""
    ends = service.listeners(config)
    return [address for name in ("tls", "clear", "mirror") for address, bound in ends[name] if bound == port]


def judge_name(name: str, resolution: Resolution, heard: Mapping[str, str], listening: Sequence[str]) -> Finding:
    """`heard`: what there is at each address, "" for this cache; empty where the service does not run. `listening`:
    the addresses at which the cache listens on the port of this name."""
    host, colon, port = name.partition(":")
    if not resolution.addresses:
        cure = f"a record of {host} in DNS; mitm-cache example hosts --address ADDRESS has it for nodes"
        return warn("local", name, f"cannot be resolved here: {resolution.trouble}", cure)
    where = ", ".join(resolution.addresses)
    if heard:
        wrong = {address: words for address, words in heard.items() if words}
    else:
        wrong = {address: "" for address in resolution.addresses if not is_own_address(address)}
    if strange := [address for address in wrong if not is_own_address(address)]:
        told = f": {wrong[strange[0]]}" if heard else ""
        words = f"leads to {strange[0]}, which is no address of this machine{told}"
        cure = f"{host} in DNS or /etc/hosts with an address of this machine; nothing, where that is forwarded to it"
        return warn("local", name, words, cure)
    if not listening and (wrong or not heard):
        key = f'listen.mirror = [":{port}"]' if colon else 'listen.tls = [":443"]'
        words = f"leads to this machine ({where}), and the cache does not listen on {port or HTTPS}"
        return warn("local", name, words, f"{key}; nothing, where that port is published as another one")
    if len(wrong) == len(resolution.addresses):
        address, told = next(iter(wrong.items()))
        cure = f"clients.allow with {address}; a listener there (it is on {', '.join(listening)}); ss -ltnp"
        return fail("local", name, f"leads to {address}, and the cache does not answer there: {told}", cure)
    return ok("local", name, f"leads to this {'cache' if heard else 'machine'} ({where})")


def check_certificate(scene: Scene, config: Config, service: Service) -> Iterator[Finding]:
    """Whether clients that want TLS are shown a certificate for its names: one from elsewhere, or one of the CA."""
    hosts = [host for host in config.known.local_hosts if host not in config.clear_names()]
    now = datetime.fromtimestamp(scene.now(), UTC)
    if config.local.cert is not None and config.local.key is not None:
        yield from _judge_given(scene, config, service, now)
    elif not hosts:
        yield ok("local", "certificate", "none is needed: localhost, addresses and paths are taken in clear text")
    else:
        try:
            authority = Pair.load(config.ca_dir).signer(now)
        except ConfigError:
            yield skip("local", "certificate", "the CA cannot be read, or is not there yet", "see the line of ca")
            return
        outside = [host for host in hosts if not authority.constraints.cover(host)]
        if outside:
            cure = f"{ANEW}; or local.cert and local.key"
            yield fail("local", "certificate", f"the CA may not sign for {', '.join(outside)}", cure)
        else:
            yield ok("local", "certificate", f"the CA may sign for {', '.join(hosts)}")


def _judge_given(scene: Scene, config: Config, service: Service, now: datetime) -> Iterator[Finding]:
    cert, key = config.local.cert, config.local.key
    assert cert is not None
    assert key is not None
    try:
        given = GivenCertificate.load(cert, key)
        given.check_covers(config.known.local_hosts)
    except ConfigError as error:
        if "Permission denied" in error.message and os.geteuid() != 0:
            yield skip("local", str(cert), "it may not be read by this user", AS_ROOT)
        else:
            cure = "put the right files there: the service does not start with these; then mitm-cache reload"
            yield fail("local", str(cert), error.message, cure)
        return
    user = _user(scene, config, service)
    if user is not None and (wrong := [path for path in (cert, key) if _barred(user, path, 4)]):
        cure = f"sudo chown root:{user.name} {wrong[0]}; sudo chmod 640 {wrong[0]}"
        yield fail("local", str(wrong[0]), f"the service's user {user.name} may not read it", cure)
        return
    hosts = [host for host in config.known.local_hosts if host not in config.clear_names()]
    yield judge_given(given, hosts, now)


def judge_given(given: GivenCertificate, hosts: Sequence[str], now: datetime) -> Finding:
    """`hosts`: those that no client believes without TLS."""
    subject = str(given.path)
    anew = "put another one in its place, then mitm-cache reload"
    if now < given.not_before:
        words = f"is valid from {given.not_before}, and it is {now:%Y-%m-%d %H:%M}"
        return fail("local", subject, words, f"timedatectl set-ntp true; or {anew}")
    left = given.not_after - now
    if left.total_seconds() <= 0:
        return fail("local", subject, f"has ended ({given.not_after:%Y-%m-%d}): clients do not take it any more", anew)
    if left < SOON:
        return warn("local", subject, f"ends in {left.days} days ({given.not_after:%Y-%m-%d})", anew)
    if missing := [host for host in hosts if not given.covers(host)]:
        cure = "one that has it too; or ca.permit, for a certificate of the cache's CA"
        return warn("local", subject, f"is not for {', '.join(missing)}: TLS by such a name is refused", cure)
    return ok("local", subject, f"is for its names, valid for {left.days} days more")


def check_room(config: Config, service: Service) -> Iterator[Finding]:
    """What the local registry holds against `local.max_size`, and that against the disk."""
    root = config.data_dir
    if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
        yield skip("local", "local.max_size", f"{root} is not there, or may not be read", f"{AS_ROOT}; see data")
        return
    status = os.statvfs(root)
    total, free = status.f_frsize * status.f_blocks, status.f_frsize * status.f_bavail
    held = measure(Layout(root, ""))
    blobs = service.blobs
    if blobs is None:
        blobs = Blobs(root / "blobs").measure()[1] if (root / "blobs").is_dir() else 0
    # What is cached of other registries leaves where room is wanted.
    room = free + max(blobs - held, 0) - config.min_free.of(total)
    yield judge_room(held=held, limit=config.local.max_size.of(total), total=total, room=max(room, 0))


def judge_room(*, held: int, limit: int, total: int, room: int) -> Finding:
    """All in bytes: what is held, what may be, the file system, and what could still be had of it."""
    words = f"{size(held)} of {size(limit)} are used, and the disk has room for {size(room)} more"
    if limit > total:
        cure = 'local.max_size = "15%", or a file system of its own'
        return fail("local", "local.max_size", f"{words}: it is more than the file system has, {size(total)}", cure)
    if held >= limit:
        return fail("local", "local.max_size", f"{words}: pushes are refused", MAKE_ROOM)
    if held >= limit * FULL:
        return warn("local", "local.max_size", f"{words}: pushes are refused soon", MAKE_ROOM)
    if limit - held > room:
        cure = f'local.max_size = "{max(1, (held + room * 9 // 10) >> 20)}M", or free some of the disk'
        return warn("local", "local.max_size", f"{words}: the disk is full before", cure)
    return ok("local", "local.max_size", words)


def check_daemon(scene: Scene, config: Config, service: Service) -> Iterator[Finding]:
    """Whether the daemon that is asked for images answers, and the service's user may ask it."""
    # Its library is slow to load, and most caches do without.
    from mitm_cache.local.daemon import Daemon  # noqa: PLC0415

    url = config.local.daemon
    user = _user(scene, config, service)
    if url.startswith(UNIX) and user and (found := list(judge_socket(Path(url.removeprefix(UNIX)), user))):
        yield from found
        return
    with closing(Daemon(url)) as daemon:
        try:
            daemon.look([])
        except UpstreamError as error:
            if "Permission denied" in error.message and user is not None and user.uid != os.geteuid():
                yield skip("local", url, "it may not be asked by this user", AS_ROOT)
            else:
                cure = "sudo systemctl start docker; or another local.daemon"
                yield fail("local", url, error.message, cure)
            return
    who = f", and {user.name} may ask it" if user is not None else ""
    yield ok("local", url, f"answers{who}")


def judge_socket(path: Path, user: User) -> Iterator[Finding]:
    """What keeps the service's user from a daemon's socket, if anything does (unix(7): who connects has to be allowed
    to write)."""
    url = f"{UNIX}{path}"
    try:
        status = path.stat()
        barred = next((folder for folder in reversed(path.resolve().parents) if _barred(user, folder, 1)), None)
    except FileNotFoundError:
        yield fail("local", url, "there is no such file", "sudo systemctl start docker; or another local.daemon")
        return
    except PermissionError:
        yield skip("local", url, "it may not be looked at by this user", AS_ROOT)
        return
    if not stat.S_ISSOCK(status.st_mode):
        yield fail("local", url, "is no socket", 'local.daemon = "unix:///var/run/docker.sock"')
    elif barred is not None:
        words = f"the service's user {user.name} may not enter {barred}"
        yield fail("local", url, words, f"sudo chmod o+x {barred}; or tcp://HOST:PORT")
    elif not user.may(path, 2):
        group = _group(status.st_gid)
        words = f"the service's user {user.name} may not use it: it is for the group {group}"
        if stat.S_IMODE(status.st_mode) & stat.S_IWGRP:
            cure = f"sudo usermod --append --groups {group} {user.name}, then sudo systemctl restart mitm-cache"
        else:
            words = f"the service's user {user.name} may not use it: mode {stat.S_IMODE(status.st_mode):04o}"
            cure = f"sudo chmod g+rw {path}, and {user.name} into the group {group}"
        yield fail("local", url, f"{words}; --group-add {status.st_gid} in a container", cure)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _barred(user: User, path: Path, wanted: int) -> bool:
    return not user.may(path, wanted)


def _user(scene: Scene, config: Config, service: Service) -> User | None:
    """Who the service runs as, with the groups that it has had since its start; None where there is no telling."""
    try:
        user = user_of(scene, config.data_dir, service)
    except OSError:
        return None
    groups = processes.groups(scene.proc, service.pid) if service.pid is not None else None
    return user if groups is None else replace(user, groups=groups)
