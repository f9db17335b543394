"""The lab as a whole: `with lab() as it:` gives registries with images, a cache host and a node."""

import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trustme

from tests.lab import images, network, registries
from tests.lab.clients import Buildah, Client, Podman, Skopeo, Syft
from tests.lab.containerd import Cri, Ctr
from tests.lab.docker import BuildKit, Docker
from tests.lab.host import Host

ROOT = Path(__file__).parents[2]
TOOLS = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "curl": "curl",
    "nginx": "nginx",
    "docker-registry": "docker-registry",
    "htpasswd": "apache2-utils",
    "dnsmasq": "dnsmasq-base",
    "skopeo": "skopeo",
}


class Lab:
    """Everything a test needs: `internet`, the hosts, images and fresh clients."""

    def __init__(self, folder: Path, net: network.Network, stack: ExitStack) -> None:
        self.folder, self._paths = folder, 0
        self._clients: list[Client] = []
        self._images: dict[str, images.Image] = {}
        self.ca = trustme.CA(organization_name="lab internet")
        self.ca_file = folder / "internet-ca.crt"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        spaces = {"internet": net.internet, "registries": net.internet, "cache": net.cache, "node": net.node}
        hosts = {name: Host(name, space, folder / name, stack) for name, space in spaces.items()}
        self.cache, self.node, self.direct = hosts["cache"], hosts["node"], hosts["internet"]
        # A node's own file, on the cache host too: the product must not look there.
        to_cache = dict.fromkeys(registries.REGISTRY_NAMES, network.CACHE)
        self.cache.resolve(to_cache)
        self.node.resolve({**to_cache, registries.TOKEN_HOST: network.TOKEN_HOST})
        self.cache.trust("none", "")
        sides = (hosts["internet"], hosts["registries"], self.ca)
        self.internet = stack.enter_context(registries.internet(*sides, python=sys.executable, root=ROOT))
        self._name_server(hosts["internet"])

    def _name_server(self, host: Host) -> None:
        names = self.folder / "names"
        names.write_text("".join(f"{address} {name}\n" for name, address in registries.ADDRESSES.items()))
        # -d: a dnsmasq that changes its user loses the signal that ends it with the test run.
        flags = ["-d", "-R", "-h", "-C", "/dev/null", "-x", "", "--bind-interfaces"]
        server = host.start("dnsmasq", "dnsmasq", *flags, f"--listen-address={network.DNS}", "-H", str(names))
        server.wait_until(lambda: host.listening(53), "dnsmasq on 53")

    def image(self, recipe: images.Recipe) -> images.Image:
        """An image, made and pushed when first asked for.

        The S3 registries have it under `lab/`, `library/` and `private/`, private.example.com under `private/`,
        registry.k8s.io by its bare name.
        """
        if recipe.name not in self._images:
            made = images.make(recipe, self.folder / "images" / recipe.name.replace(":", "-"))
            names = [f"{space}/{recipe.name}" for space in ("lab", "library", "private")]
            self.internet.push(made.source, *names)
            names = [f"{space}/{recipe.name}" for space in ("private", "k8s-artifacts-prod/images")]
            self.internet.push(made.source, *names, files=True)
            self._images[recipe.name] = made
        return self._images[recipe.name]

    def fresh(self, kind: str, ending: str = "") -> Path:
        """A path that nobody has used. Short, because a unix socket's path has at most 107 characters."""
        self._paths += 1
        return self.folder / f"{kind}{self._paths}{ending}"

    def _keep[C: Client](self, client: C) -> C:
        self._clients.append(client)
        return client

    def skopeo(self, host: Host | None = None) -> Skopeo:
        return self._keep(Skopeo(host or self.node, self.fresh("skopeo")))

    def podman(self, host: Host | None = None) -> Podman:
        return self._keep(Podman(host or self.node, self.fresh("podman")))

    def buildah(self, host: Host | None = None) -> Buildah:
        return self._keep(Buildah(host or self.node, self.fresh("buildah")))

    def syft(self, host: Host | None = None) -> Syft:
        return self._keep(Syft(host or self.node, self.fresh("syft")))

    def docker(
        self, host: Host | None = None, *, mirrors: tuple[str, ...] = (), insecure: tuple[str, ...] = ()
    ) -> Docker:
        return self._keep(Docker(host or self.node, self.fresh("docker"), mirrors=mirrors, insecure=insecure))

    def buildkit(self, host: Host | None = None) -> BuildKit:
        return self._keep(BuildKit(host or self.node, self.fresh("build")))

    def ctr(self, host: Host | None = None) -> Ctr:
        return self._keep(Ctr(host or self.node, self.fresh("ctr")))

    def cri(self, host: Host | None = None) -> Cri:
        return self._keep(Cri(host or self.node, self.fresh("cri")))

    def wipe_clients(self) -> None:
        """End every client made so far and forget what they pulled."""
        while self._clients:
            self._clients.pop().wipe()


@contextmanager
def lab() -> Iterator[Lab]:
    """The whole lab; nothing of it is left afterwards, neither process nor file nor mount."""
    with ExitStack() as stack:
        # Hexadecimal: podman makes a reference of the path, and `lab-_x`, which mkdtemp may choose, is none.
        folder = Path(tempfile.gettempdir()) / f"lab-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "log").mkdir()
        net = stack.enter_context(network.network(folder / "log", registries.HOST_COUNT))
        yield Lab(folder, net, stack)
