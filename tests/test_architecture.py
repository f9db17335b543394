"""The rooms of `docs/architecture.md`, kept by reading the imports (nothing is run or imported).

Each rule is a table and a function from a tree of modules to the breaches in it; the last tests prove that each rule
can fail.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "mitm_cache"

# A room imports itself and rooms with a lower number.
LEVELS = {
    "errors": 0, "registries": 0, "units": 0, "oci": 0, "wire": 0,
    "config": 1, "parsing": 1, "policy": 1, "users": 1, "journal": 1, "tasks": 1, "ca": 1, "cache": 1,
    "upstream": 2, "rights": 2, "node": 2, "exchange": 2,
    "answers": 3, "pull_through": 3, "local": 3, "relay": 3, "welcome": 3,
    "doctor": 3, "explanation": 3,
    "proxy": 4, "admin": 4,
    "listening": 5, "core": 5, "filling": 5, "app": 5, "embed": 5, "workers": 5,
    "cli": 6, "demo": 6, "__main__": 6,
}  # fmt: skip
EVERYONES = {"errors", "registries"}  # imported by all, importing nothing of the project
NEIGHBOURS = {
    ("wire", "oci"),  # a request carries its operation
    ("config", "parsing"),
    ("config", "policy"),  # its rows are part of the configuration
    ("policy", "parsing"),
    ("users", "parsing"),
    ("pull_through", "answers"),
    ("relay", "answers"),
    ("doctor", "local"),  # how much is pushed, and its daemon
    ("local", "answers"),
    ("local", "pull_through"),  # what is known, and pages of lists
    ("app", "listening"),
    ("app", "core"),
    ("app", "filling"),  # by schedule
    ("filling", "core"),
    ("embed", "core"),
    ("workers", "app"),  # each process runs one app
    ("workers", "listening"),
    ("cli", "demo"),  # a command of its own
    ("__main__", "cli"),
}

# Third-party libraries and the rooms they live in.
HOMES = {
    "cryptography": {"ca"},
    "OpenSSL": {"proxy"},
    "mitmproxy": {"proxy", "embed"},
    "h11": {"proxy"},  # what mitmproxy reads bodies with
    "diskcache": {"cache"},
    "pycurl": {"upstream"},
    "dns": {"upstream"},
    "click": {"cli"},
    "rich": {"cli"},
    "ruamel": {"node", "filling"},
    "prometheus_client": {"admin"},
    "bcrypt": {"users"},
    "docker": {"local"},
    "urllib3": {"local"},  # what docker lets through of it
}

# Meaning before I/O: these decide, others do.
PURE = {
    "errors",
    "registries",
    "units",
    "oci",
    "wire",
    "cache.entry",
    "cache.freshness",
    "policy.question",
    "policy.rule",
    "policy.judge",
}
IMPURE_LIBRARIES = {
    "asyncio", "concurrent", "diskcache", "mitmproxy", "multiprocessing", "pycurl", "selectors", "socket", "sqlite3",
    "ssl", "subprocess", "threading",
}  # fmt: skip

# The doors: where the unexpected becomes an answer or an exit code, and nothing above would catch it. libcurl's
# callbacks are one: what escapes them is lost in C.
DOORS = {
    "proxy.serve", "proxy.deliver", "proxy.layer", "admin.server", "app", "cli", "doctor.examination", "upstream.curl",
}  # fmt: skip

MAX_LINES = 400  # to be argued about from 300 on


@dataclass(frozen=True, slots=True)
class Module:
    name: str  # below the package: "cache.spool", "" for the package itself
    tree: ast.Module
    lines: int

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    def within(self, names: set[str]) -> bool:
        """Whether the module is one of these, or below one of these."""
        parts = self.name.split(".")
        return any(".".join(parts[:n]) in names for n in range(1, len(parts) + 1))

    def imports(self) -> Iterator[str]:
        """Full names of what is imported anywhere in the module, inside functions and for types only too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}: relative import"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def project_imports(self) -> Iterator[str]:
        """Names below the package of what is imported from the project."""
        for name in self.imports():
            top, _, below = name.partition(".")
            if top == PACKAGE and below and below.partition(".")[0] != "__version__":
                yield below


def read(root: Path) -> list[Module]:
    """Every module of the package under `root`."""
    modules = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        source = path.read_text()
        modules.append(Module(name, ast.parse(source, path), source.count("\n")))
    return modules


def _may_import(room: str, other: str) -> bool:
    if room == other:
        return True
    if room in EVERYONES or room == "":
        return False
    return other in EVERYONES or (room, other) in NEIGHBOURS or LEVELS[other] < LEVELS[room]


def unknown_rooms(module: Module) -> Iterator[str]:
    """Every module has a room in the table."""
    if module.room and module.room not in LEVELS:
        yield f"{module.name} is in no room: give {module.room} a level"


def calls_up(module: Module) -> Iterator[str]:
    """Nothing below calls up."""
    for name in module.project_imports():
        other = name.partition(".")[0]
        if module.room in {"", *LEVELS} and (other not in LEVELS or not _may_import(module.room, other)):
            yield f"{module.name} imports {name}"


def homeless_libraries(module: Module) -> Iterator[str]:
    """A third-party library lives in one or two named rooms."""
    for name in module.imports():
        library = name.partition(".")[0]
        if library not in sys.stdlib_module_names and library != PACKAGE and module.room not in HOMES.get(library, ()):
            yield f"{module.name} imports {library}, at home in {sorted(HOMES.get(library, ())) or 'no room'}"


def impure(module: Module) -> Iterator[str]:
    """Pure modules import no library that does I/O, and of the project only pure modules."""
    if module.within(PURE):
        for name in module.imports():
            if name.partition(".")[0] in IMPURE_LIBRARIES:
                yield f"{module.name} is pure and imports {name}"
        for name in module.project_imports():
            if not Module(name, module.tree, 0).within(PURE):
                yield f"{module.name} is pure and imports {name}"


def blanket_excepts(module: Module) -> Iterator[str]:
    """Outside the doors a blanket `except` may only clean up and raise again."""
    if module.within(DOORS):
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            last = node.body[-1]
            raises = isinstance(last, ast.Raise) and last.exc is None
            if any(_is_blanket(type_) for type_ in caught) and not raises:
                yield f"{module.name}:{node.lineno} catches everything"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"suppress", "contextlib.suppress"}:
            yield from (f"{module.name}:{node.lineno} suppresses everything" for arg in node.args if _is_blanket(arg))


def _is_blanket(type_: ast.expr | None) -> bool:
    return type_ is None or (isinstance(type_, ast.Name) and type_.id in {"Exception", "BaseException"})


def too_long(module: Module) -> Iterator[str]:
    """A module that grows past the limit has become two."""
    if module.lines > MAX_LINES:
        yield f"{module.name} has {module.lines} lines"


RULES = [unknown_rooms, calls_up, homeless_libraries, impure, blanket_excepts, too_long]
by_name = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


@by_name
def test_rule(rule: Callable[[Module], Iterator[str]]) -> None:
    """The package keeps the rule."""
    assert [breach for module in read(ROOT) for breach in rule(module)] == []


def test_no_keys_in_git() -> None:
    """git tracks no key and no certificate, the CA's above all."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # The checkout may belong to another user.
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
    tracked = subprocess.run([*git, "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    assert [name for name in tracked.split("\0") if Path(name).suffix in {".pem", ".key", ".p12"}] == []


@pytest.mark.parametrize(
    ("rule", "path", "source", "breaches"),
    [
        (unknown_rooms, "helpers.py", "", ["helpers is in no room: give helpers a level"]),
        (calls_up, "oci/digest.py", "from mitm_cache.cache import blobs", ["oci.digest imports cache.blobs"]),
        (calls_up, "oci/digest.py", "from mitm_cache import wire", ["oci.digest imports wire"]),
        (calls_up, "wire/message.py", "from mitm_cache.oci.operation import Operation", []),
        (calls_up, "oci/digest.py", "from mitm_cache import errors, registries", []),
        (calls_up, "errors.py", "import mitm_cache.registries", ["errors imports registries"]),
        (calls_up, "__init__.py", "from mitm_cache.app import App", [" imports app.App"]),
        (calls_up, "admin/page.py", "import mitm_cache.proxy.serve", ["admin.page imports proxy.serve"]),
        (calls_up, "app.py", "def f():\n    import mitm_cache.workers", ["app imports workers"]),
        (calls_up, "workers.py", "from mitm_cache.app import App", []),
        (calls_up, "app.py", "from mitm_cache.nowhere import x", ["app imports nowhere.x"]),
        (homeless_libraries, "ca.py", "from cryptography import x509", []),
        (homeless_libraries, "app.py", "import dns.resolver", ["app imports dns, at home in ['upstream']"]),
        (homeless_libraries, "app.py", "import requests", ["app imports requests, at home in no room"]),
        (homeless_libraries, "app.py", "import asyncio, mitm_cache.errors", []),
        (impure, "wire/ranges.py", "import asyncio.streams", ["wire.ranges is pure and imports asyncio.streams"]),
        (impure, "cache/entry.py", "from mitm_cache.cache.blobs import Blobs",
         ["cache.entry is pure and imports cache.blobs.Blobs"]),
        (impure, "cache/freshness.py", "from mitm_cache.cache.entry import Entry", []),
        (impure, "cache/blobs.py", "import asyncio", []),
        (blanket_excepts, "ca.py", "try: f()\nexcept Exception: pass", ["ca:2 catches everything"]),
        (blanket_excepts, "ca.py", "try: f()\nexcept (OSError, BaseException) as e: raise X from e",
         ["ca:2 catches everything"]),
        (blanket_excepts, "ca.py", "try: f()\nexcept: g()", ["ca:2 catches everything"]),
        (blanket_excepts, "ca.py", "with contextlib.suppress(Exception): f()", ["ca:1 suppresses everything"]),
        (blanket_excepts, "ca.py", "try: f()\nexcept BaseException:\n    g()\n    raise", []),
        (blanket_excepts, "ca.py", "try: f()\nexcept OSError: pass", []),
        (blanket_excepts, "cli/serve.py", "try: f()\nexcept Exception: pass", []),
        (too_long, "ca.py", "\n" * 400, []),
        (too_long, "ca.py", "\n" * 401, ["ca has 401 lines"]),
    ],
)  # fmt: skip
def test_the_rule_can_fail(
    tmp_path: Path, rule: Callable[[Module], Iterator[str]], path: str, source: str, breaches: list[str]
) -> None:
    """A tree with one module gives the breaches that it has, and no others."""
    file = tmp_path / PACKAGE / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    assert [breach for module in read(tmp_path) for breach in rule(module)] == breaches
