"""A cluster on the cache's machine: what was pushed under `localhost:5000` is pulled by that name inside its nodes."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mitm_cache.cli import main
from tests.e2e.conftest import Serve
from tests.e2e.test_pull import AMD64, NEEDS, check
from tests.lab import images, network
from tests.lab.containerd import Cri, Ctr
from tests.lab.lab import Lab
from tests.lab.process import LabError
from tests.lab.product import MIRROR
from tests.needs import needs_root

pytestmark = [pytest.mark.e2e, needs_root(), NEEDS["skopeo"]]

NAME = "localhost:5000"


def set_up(folder: Path) -> Path:
    """`mitm-cache setup kind`: what a new cluster's nodes mount as certs.d."""
    (folder / "empty.toml").touch()
    options = ["--cache", network.CACHE, "--local", NAME, "--file", "/kind.yaml", "--root", str(folder)]
    done = CliRunner().invoke(main, ["--config", str(folder / "empty.toml"), "setup", "kind", *options])
    assert done.exit_code == 0, done.output
    return folder / "kind-certs.d"


@NEEDS["cri"]
@pytest.mark.parametrize("client_of", [Cri, Ctr])
def test_pushed_outside_and_pulled_inside(lab: Lab, serve: Serve, client_of: type[Cri] | type[Ctr]) -> None:
    """One endpoint for both: images of one's own, and every other registry's. An unknown image is the cache's 404."""
    product = serve(ports={"mirror": MIRROR}, sections={"local": {"names": [NAME]}})
    folder = lab.fresh("cluster")
    folder.mkdir(exist_ok=True)
    shutil.copytree(set_up(folder), lab.node.etc / "containerd/certs.d", dirs_exist_ok=True)
    own, other = images.make(images.Recipe("own:1", (70_000,)), lab.fresh("image")), lab.image(images.TINY)
    lab.node.run(
        *("skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"),
        *(own.source, f"docker://{network.CACHE}:{MIRROR}/local/team/own:1"),
    )
    client = lab._keep(client_of(lab.node, lab.fresh("containerd")))
    check(client.pull(f"{NAME}/team/own:1"), own, AMD64)
    asked = [event for event in product.events() if event["registry"] == "local" and event["method"] == "GET"]
    assert {event["outcome"] for event in asked} == {"LOCAL"}
    check(client.pull("quay.io/lab/tiny:1"), other, AMD64)
    with pytest.raises(LabError, match=r"not found|404") as refused:
        client.pull(f"{NAME}/team/none:1")
    assert "connection refused" not in str(refused.value)
