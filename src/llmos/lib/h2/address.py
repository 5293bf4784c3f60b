"""Addresses as gRPC writes them: `unix:PATH`, `HOST:PORT`, `[IPV6]:PORT`."""

from __future__ import annotations

import os
import socket

from llmos.lib.errors import FailedPrecondition


def unix_path(address: str) -> str | None:
    """Return the path of a Unix socket's address; None for others."""
    if not address.startswith("unix:"):
        return None
    path = address.removeprefix("unix:")
    return path[2:] if path.startswith("///") else path


def host_port(address: str) -> tuple[str, int]:
    """Return host and port. Raises ValueError."""
    host, _, port = address.removeprefix("dns:///").removeprefix("ipv4:").rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def bound_socket(address: str, setting: str) -> socket.socket:
    """Return a socket that is bound to an address and does not listen yet.

    A Unix socket left by a dead process is taken over, a live one is not. setting: where the
    address can be changed, for the error. Raises FailedPrecondition ADDRESS_IN_USE.
    """
    path = unix_path(address)
    try:
        if path is not None:
            return _bound_unix(path)
        host, port = host_port(address)
        family, kind, number, _, where = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, number)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(where)
        except BaseException:
            found.close()
            raise
        return found
    except (OSError, ValueError) as exc:
        why = exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)
        raise FailedPrecondition(
            "ADDRESS_IN_USE",
            f"Cannot listen on {address} ({why}): stop what listens there, or choose another "
            f"address by {setting}.",
        ) from exc


def _bound_unix(path: str) -> socket.socket:
    if os.path.exists(path):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise FailedPrecondition(
                    "ADDRESS_IN_USE", f"A process already listens on {path}; stop it first."
                )
    found = socket.socket(socket.AF_UNIX)
    try:
        found.bind(path)
    except BaseException:
        found.close()
        raise
    return found
