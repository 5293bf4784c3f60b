"""Who may look into the OS and steer it over HTTP.

A browser carries requests that its user never made: a page of somebody else may post here, and may
give its own name this machine's address to read the answers (DNS rebinding). So changes must come
as JSON, which a page of another origin cannot send without asking, and from the same origin; and
the name that the browser used must be one of ours.
"""

from __future__ import annotations

import ipaddress

from starlette.requests import Request

from llmos.lib.errors import InvalidArgument, PermissionDenied
from llmos.servers.gateway.keys import Keys


class Guard:
    """Checks requests. `admin` and `hosts` are as in GatewayConfig: names separated by commas."""

    def __init__(self, admin: str, hosts: str, keys: Keys | None = None) -> None:
        """Keep them; keys: who may where `admin` is `keys`."""
        self._admin, self._keys = admin, keys
        self._hosts = {name.strip().lower() for name in hosts.split(",") if name.strip()}

    def check(self, request: Request) -> None:
        """Raise PermissionDenied ADMIN_OFF, NOT_LOCAL, NOT_ADMIN, BAD_HOST or CROSS_ORIGIN.

        Raises InvalidArgument NOT_JSON for a change that is not JSON, and what `Keys.find` raises.
        """
        if self._admin == "none":
            raise PermissionDenied(
                "ADMIN_OFF", "The console is off; the gateway's setting `admin` turns it on."
            )
        if self._admin == "local" and not _is_local(request):
            raise PermissionDenied(
                "NOT_LOCAL",
                'The console is for this machine only; the gateway\'s setting `admin = "all"` '
                "opens it to everybody who reaches it.",
            )
        if self._admin == "keys" and self._keys is not None and not self._keys.find(request).admin:
            raise PermissionDenied(
                "NOT_ADMIN", "This key may not steer the OS; `llmos-ctl key create --admin` can."
            )
        host = request.headers.get("host", "")
        if not self._is_ours(_name(host)):
            raise PermissionDenied(
                "BAD_HOST",
                f"The console is not reached under the name {_name(host)[:100]!r}; use an IP "
                "address or localhost, or add the name to the gateway's setting `admin_hosts`.",
            )
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise PermissionDenied(
                "CROSS_ORIGIN", f"A page of {origin[:100]} may not steer this LLM OS."
            )
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method == "POST" and kind != "application/json":
            raise InvalidArgument(
                "NOT_JSON", "A change is a JSON object; send content-type: application/json."
            )

    def _is_ours(self, name: str) -> bool:
        if name == "localhost" or name.endswith(".localhost") or name in self._hosts:
            return True
        return _address(name) is not None


def _name(host: str) -> str:
    """Return a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_local(request: Request) -> bool:
    client = request.client
    if client is None:  # a Unix socket
        return True
    address = _address(client.host)
    mapped = getattr(address, "ipv4_mapped", None) or address
    return mapped is not None and mapped.is_loopback
