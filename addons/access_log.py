"""Write mitm-cache's access line for each flow: `mitmdump -q -s access_log.py`.

These are the events and the lines of `mitm_cache.journal`, on standard output. What another addon of mitm-cache has
answered says HIT or MISS and why; what mitmproxy has passed on by itself says RELAY.
"""

import asyncio
from secrets import token_hex
from weakref import WeakKeyDictionary

from mitmproxy import http
from mitmproxy.connection import Client

from mitm_cache.embed import Job
from mitm_cache.journal import AccessLine, Event
from mitm_cache.proxy.door import Door, Exchange
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Response

FLUSH_SECONDS = 0.02


class Access(Job):
    """The job of this script."""

    name = "access_log"
    _line: AccessLine
    _door: Door

    def __init__(self) -> None:
        super().__init__()
        self._pending: WeakKeyDictionary[http.HTTPFlow, Exchange] = WeakKeyDictionary()
        self._flushing: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Keep account from now on."""
        config, shared = self.shared.config, self.shared
        self._line = AccessLine(config.log_format)
        # It parses requests as the door of the service does; nothing is refused here, and no Via leads back to it.
        self._door = Door(known=config.known, journal=shared.journal, via=token_hex(8), ways=shared.arrivals.ways)
        shared.journal.add(self._note)

    def _note(self, event: Event) -> None:
        if self not in self.shared.jobs:
            return  # this script has been loaded anew, and the new one writes
        self._line(event)
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flushing = None
        self._line.flush()

    def http_connected(self, flow: http.HTTPFlow) -> None:
        """Note where CONNECT leads."""
        self.shared.arrivals.connected(flow)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """The time runs."""
        self.shared.arrivals.way(flow.client_conn)
        self._pending[flow] = self._door.admit(flow.client_conn, flow.request)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """The first byte."""
        if flow in self._pending:
            self._pending[flow].mark_first_byte()

    def response(self, flow: http.HTTPFlow) -> None:
        """The whole answer has come."""
        self._finish(flow, "")

    def error(self, flow: http.HTTPFlow) -> None:
        """It never will."""
        self._finish(flow, flow.error.msg if flow.error else "no answer was made")

    def _finish(self, flow: http.HTTPFlow, failure: str) -> None:
        exchange = self._pending.pop(flow, None)
        if exchange is None or self.shared.accounts(flow):
            return
        exchange.relayed = True
        exchange.response = None
        if flow.response is not None:
            host = "" if exchange.request else f"{flow.request.pretty_host}, "
            reason = f"{host}passed on by mitmproxy"
            status = flow.response.status_code
            exchange.response = Response(status=status, headers=Headers(), outcome="RELAY", reason=reason)
        exchange.finish(bytes_out=_size(flow), failure=failure)

    def client_disconnected(self, client: Client) -> None:
        """Forget how it came."""
        self.shared.arrivals.left(client)

    def done(self) -> None:
        """Write what has waited."""
        super().done()
        if self._flushing is not None:
            self._flushing.cancel()
            self._flush()


def _size(flow: http.HTTPFlow) -> int:
    """Bytes of the body: as they came, or as announced where mitmproxy streams and keeps none."""
    if flow.response is None or flow.request.method == "HEAD":
        return 0
    if flow.response.raw_content is not None:
        return len(flow.response.raw_content)
    announced = flow.response.headers.get("content-length", "")
    return int(announced) if announced.isascii() and announced.isdigit() else 0


addons = [Access()]
