"""mitmproxy itself: a master with as few addons as it takes, and none that listens, dials or writes files."""

import asyncio

from mitmproxy.addons.core import Core
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.master import Master
from mitmproxy.options import Options


class Engine:
    """A mitmproxy master in the running event loop. mitmproxy allows one per process at a time."""

    def __init__(self) -> None:
        self.master = Master(Options())
        self.proxyserver = Proxyserver()
        self.master.addons.add(Core(), self.proxyserver)
        # lazy: a HIT must not need its upstream. server=False: we listen ourselves.
        self.master.options.update(
            server=False, connection_strategy="lazy", http2=False, http3=False, websocket=False, rawtcp=False
        )
        self._loop = asyncio.get_running_loop()

    def add(self, *addons: object) -> None:
        """Add addons, in the order in which they are asked."""
        self.master.addons.add(*addons)

    async def run(self) -> None:
        """Serve until `stop`."""
        await self.master.run()

    def stop(self) -> None:
        """End `run`, from any thread."""
        self.master.shutdown()
