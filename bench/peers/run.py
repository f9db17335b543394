"""`python -m bench peers`: mitm-cache beside other caches, on the same work in one run."""

import argparse
import os
import shutil
import ssl
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.peers.caches import CACHES, OURS
from bench.peers.origin import Origin, origin
from bench.peers.programs import Broken, Missing
from bench.peers.table import table
from bench.peers.work import Figures, work


def main(arguments: Sequence[str]) -> None:
    """Run what is asked for and print the table."""
    options = _parse(arguments)
    names = list(dict.fromkeys(options.caches)) or list(CACHES)
    orders = [names if turn % 2 == 0 else names[::-1] for turn in range(options.turns)]
    figures: dict[str, list[Figures]] = {name: [] for name in names}
    gone: set[str] = set()
    with TemporaryDirectory(prefix="mitm-cache-peers-") as folder:
        upstream = Path(folder) / "origin"
        upstream.mkdir()
        try:
            with origin(upstream, size=options.megabytes * 10**6, rate=options.rate * 10**6) as source:
                for name in (each for order in orders for each in order):
                    if name not in gone:
                        _take_turn(name, source, Path(folder) / "cache", figures, gone)
        except (Broken, Missing) as error:
            raise SystemExit(f"the upstream {error}") from error
    print(f"{options.megabytes} MB, upstream {options.rate} MB/s a connection; turns: {options.turns}, in the order")
    print(f"{', '.join(names)}; every second turn backwards\n")
    print(table({name: turns for name, turns in figures.items() if turns}, ours=OURS))


def _take_turn(name: str, source: Origin, folder: Path, figures: Mapping[str, list[Figures]], gone: set[str]) -> None:
    """One turn of one cache, in a folder of its own that is removed; what fails is told and left out from then on."""
    folder.mkdir()
    os.sync()  # what the one before wrote is not this one's affair
    try:
        with CACHES[name](source, folder) as cache:
            turn = work(cache, source)
    except Missing as error:
        print(f"{name}: skipped, {error}", file=sys.stderr, flush=True)
        gone.add(name)
    except (Broken, OSError, ssl.SSLError) as error:
        print(f"{name}: failed, {error}", file=sys.stderr, flush=True)
        gone.add(name)
    else:
        print(f"{name}: the herd took {turn.last_s:.1f} s", file=sys.stderr, flush=True)
        figures[name].append(turn)
    finally:
        shutil.rmtree(folder)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench peers", description=__doc__)
    parser.add_argument("caches", nargs="*", metavar="CACHE", help=f"all if none is named: {', '.join(CACHES)}")
    parser.add_argument("--megabytes", type=_positive, default=500, help="of the blob (default %(default)s)")
    parser.add_argument("--rate", type=_positive, default=30, help="MB/s of each upstream connection (%(default)s)")
    parser.add_argument("--turns", type=_positive, default=2, help="of each cache (default %(default)s)")
    options = parser.parse_args(arguments)
    for name in options.caches:
        if name not in CACHES:
            parser.error(f"no cache {name!r}; there are {', '.join(CACHES)}")
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)
