"""Whose fault it is that a request by libcurl failed, in words that name what to change."""

import pycurl

from mitm_cache.errors import StoppingError, UnreachableError, UpstreamError
from mitm_cache.upstream.route import Route
from mitm_cache.wire.proxies import Proxy
from mitm_cache.wire.redirect import Origin

_TLS = {pycurl.E_SSL_CONNECT_ERROR, pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CERTPROBLEM, pycurl.E_SSL_CIPHER}
_NOBODY = _TLS | {pycurl.E_COULDNT_CONNECT, pycurl.E_COULDNT_RESOLVE_HOST, pycurl.E_COULDNT_RESOLVE_PROXY}
_OUR_OWN = {
    pycurl.E_ABORTED_BY_CALLBACK, pycurl.E_URL_MALFORMAT, pycurl.E_OUT_OF_MEMORY, pycurl.E_READ_ERROR,
    pycurl.E_WRITE_ERROR, pycurl.E_BAD_FUNCTION_ARGUMENT,
}  # fmt: skip
"""What goes wrong here, or by the client's wish, says nothing about the other side."""
_PROXY_FAILED = 97  # CURLE_PROXY, a SOCKS proxy's refusal, is not in pycurl


def explain(
    error: pycurl.error, handle: pycurl.Curl, origin: Origin, route: Route, *, stopped: bool, answered: bool = False
) -> UpstreamError:
    """What to tell of a request to `origin` that failed.

    `stopped`: the service is ending; `answered`: the failure came after the head of an answer.
    """
    code, text = int(error.args[0]), str(error.args[1]) if len(error.args) > 1 else ""
    if stopped and code == pycurl.E_ABORTED_BY_CALLBACK:
        return StoppingError("the cache is shutting down")
    # Before there is a connection and the request has left, there is nobody: an upload counts as left only with its
    # first 64 KiB. Who lets it wait may only be slow to answer this one.
    left = handle.getinfo(pycurl.REQUEST_SIZE) > 0 or handle.getinfo(pycurl.PRETRANSFER_TIME) > 0
    absent = code in _NOBODY or not (left or code in _OUR_OWN)
    kind = UnreachableError if absent and not answered else UpstreamError
    if route.proxy is not None and (why := _explain_proxy(code, text, handle, origin, route.proxy)):
        return kind(why)
    way = f" by the proxy {route.proxy} ({route.proxy.key})" if route.proxy else ""
    if code == pycurl.E_OPERATION_TIMEDOUT:
        return kind(f"{origin} did not answer in time{way}", status=504)
    if code == pycurl.E_COULDNT_CONNECT:
        return kind(f"{origin} refused the connection or is not reachable")
    if code in _TLS:
        return kind(f"the TLS handshake with {origin} failed{way}: {text} (ca_file adds a private CA)")
    if code == pycurl.E_PARTIAL_FILE:
        return UpstreamError(f"{origin} closed the connection before the end of the body")
    return kind(f"the connection to {origin} failed{way}: {text or f'libcurl error {code}'}")


def _explain_proxy(code: int, text: str, handle: pycurl.Curl, origin: Origin, proxy: Proxy) -> str | None:
    """What a proxy refused, or None where it is not to blame."""
    answered = handle.getinfo(pycurl.HTTP_CONNECTCODE)
    if answered in (401, 407):  # tinyproxy says 401 to a wrong password
        return unauthenticated(proxy)
    if answered >= 300:
        return f"{proxy.key}: the proxy {proxy} answered {answered} to CONNECT {origin.host}:{origin.port}"
    if code in (pycurl.E_COULDNT_CONNECT, pycurl.E_COULDNT_RESOLVE_PROXY):
        return f"{proxy.key}: the proxy {proxy} refused the connection or is not reachable"
    if code == _PROXY_FAILED:
        refused = handle.getinfo(pycurl.PROXY_ERROR) in _SOCKS_UNAUTHENTICATED
        return (
            unauthenticated(proxy) if refused else f"{proxy.key}: the proxy {proxy} does not lead to {origin}: {text}"
        )
    return None


_SOCKS_UNAUTHENTICATED = {12, 33}
"""CURLPX_NO_AUTH and CURLPX_USER_REJECTED."""


def unauthenticated(proxy: Proxy) -> str:
    """What to tell where a proxy wants other credentials."""
    given = "wants a user and a password" if proxy.user is None else "does not accept the user and password given"
    return f"{proxy.key}: the proxy {proxy} {given} ({proxy.scheme}://USER:PASSWORD@{proxy.authority})"
