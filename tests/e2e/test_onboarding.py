"""The line that the cache prints for a node: run as it is, real clients pull through the cache, until it is undone."""

import shlex

import pytest

from tests.e2e.conftest import Serve
from tests.e2e.test_pull import NEEDS
from tests.lab import images
from tests.lab.lab import Lab
from tests.lab.process import LabError
from tests.lab.product import CLEAR, MIRROR, TLS
from tests.needs import needs_root

pytestmark = [pytest.mark.e2e, needs_root(), NEEDS["skopeo"], NEEDS["podman"]]

# The node's /etc is its own already; what else the script writes to lies over the machine's folders, for this run.
_APART = """
set -eu
for folder in /var/lib /usr/local/share/ca-certificates; do
    layer=$(mktemp -d)
    mount -t tmpfs layer "$layer"
    mkdir "$layer/upper" "$layer/work"
    mount -t overlay layer -o "lowerdir=$folder,upperdir=$layer/upper,workdir=$layer/work" "$folder"
done
# What update-ca-certificates makes of the certificates it is given is its own affair.
state() { find /etc -xdev -type f ! -path '/etc/ssl/certs/*' -exec sha256sum {} + | sort -k 2; }
state >/tmp/before.$$
"""
_UNDONE = """
sh /var/lib/mitm-cache-node/setup.sh --undo
state | diff /tmp/before.$$ -
rm /tmp/before.$$
test ! -e /var/lib/mitm-cache-node
"""


@pytest.mark.parametrize(
    ("way", "pull"),
    [
        ("hosts", "skopeo inspect --format '{{.Digest}}' docker://quay.io/lab/tiny:1"),
        ("mirror", "podman --root $p/a --runroot $p/b --storage-driver vfs pull -q quay.io/lab/tiny:1"),
    ],
)
def test_the_line(lab: Lab, serve: Serve, way: str, pull: str) -> None:
    """A node that knows nothing of the cache: one line, a pull, and the undo leaves every file as it was."""
    image = lab.image(images.TINY)
    ports = {"tls": TLS, "clear": CLEAR} if way == "hosts" else {"mirror": MIRROR}
    product = serve(ports=ports)
    lab.node.trust("none", "")
    before = (lab.node.etc / "hosts").read_text()
    lab.node.resolve({})
    try:
        [line] = [text.strip() for text in product.said().splitlines() if f'sudo sh "$f" {way} ' in text]
        pull = f"p=$(mktemp -d); {pull}"
        script = "\n".join([_APART, line.replace("sudo ", ""), f"({pull})", _UNDONE])
        done = lab.node.run("unshare", "--mount", "bash", "-c", script, timeout=120)
        assert way == "mirror" or image.digest in done.out
        assert [event for event in product.events() if event["outcome"] in ("MISS", "REVALIDATED")]
        wrong = line.replace('echo "', 'echo "0')
        with pytest.raises(LabError, match=r"checksum|FAILED|formatted"):
            lab.node.run("sh", "-c", f"{wrong.replace('sudo ', '')} || exit 1")
        with pytest.raises(LabError, match=r"lookup|no such host|dial"):
            lab.node.run("skopeo", *shlex.split("inspect docker://quay.io/lab/tiny:1"))
    finally:
        (lab.node.etc / "hosts").write_text(before)
