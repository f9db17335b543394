"""A script for mitmdump that says which classes are at work in it, and is mitmproxy's hosts file."""

import gc
import json
import sys
from importlib import import_module
from pathlib import Path

from mitmproxy import http
from mitmproxy.addonmanager import Loader
from mitmproxy.master import Master
from mitmproxy.proxy.server_hooks import ServerConnectionHookData


class Witness:
    """Its addon."""

    name = "witness"
    master: Master

    def load(self, loader: Loader) -> None:
        """Say which options there are."""
        self.master = loader.master
        loader.add_option("witness_file", str, "", "Where to say what is at work.")
        loader.add_option("witness_hosts", str, "", "NAME=PORT, and so on: ports of this machine.")

    def running(self) -> None:
        """Write down every class of ours, as importing its module gives it, that there is an object of."""
        classes = {kind for each in gc.get_objects() for kind in type(each).__mro__ if _is_ours(kind)}
        seen = sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in classes)
        Path(self.master.options.witness_file).write_text(json.dumps(seen))
        sys.stdout.write("witness: running\n")
        sys.stdout.flush()

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Answer in everybody's place, where a test wants it."""
        if "x-witness" in flow.request.headers:
            flow.response = http.Response.make(418, b"witness")

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """Lead mitmproxy's own connections."""
        hosts = dict(entry.split("=") for entry in self.master.options.witness_hosts.split())
        if data.server.address and data.server.address[0] in hosts:
            data.server.address = ("127.0.0.1", int(hosts[data.server.address[0]]))


def _is_ours(kind: type) -> bool:
    if not kind.__module__.startswith("mitm_cache."):
        return False
    found: object = import_module(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


addons = [Witness()]
