"""`llmos-ctl kernel top`: a view of the kernel that one leaves open."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from llmos.clients.ctl import frame, keys
from llmos.clients.ctl.session import Session, command
from llmos.lib.errors import LLMOSError

if TYPE_CHECKING:
    from rich.console import RenderableType

_LIMIT_S = 5.0  # of one look: a kernel that restarts is back sooner
_FIRST_S = 0.5  # between the two looks that the first rates come from


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(
        app,
        examples=[
            "llmos-ctl kernel top",
            "llmos-ctl kernel top --once -o json | jq .calls_per_s",
        ],
    )
    def top(
        session: Session,
        interval: Annotated[
            float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")
        ] = 1.0,
        once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    ) -> None:
        """Watch ports, queues, tenants and rates; q ends it. JSON: one line per look."""
        watch(session, interval, once)


def watch(session: Session, interval: float, once: bool) -> None:
    """Show frames until the user ends it. On a terminal, a kernel that goes away is waited for."""
    import grpc

    from llmos.lib.rpc import from_exception

    look = _looker(session)
    before = look()  # nobody there at all is an error, not something to watch
    wait = min(interval, _FIRST_S)
    if session.json or once or not sys.stdout.isatty():
        _print(session, look, before, interval, once)
        return
    from rich.console import Console
    from rich.live import Live

    from llmos.clients.ctl import top_view

    console = Console(highlight=False)
    with (
        keys.raw() as key,
        Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
    ):

        def show(view: RenderableType) -> None:
            live.update(view, refresh=True)

        show(top_view.view(before, frame.Rates(), console.height))
        with contextlib.suppress(KeyboardInterrupt):  # that is how people leave, too
            while key(wait) != "q":
                wait = interval
                try:
                    now = look()
                except (grpc.RpcError, LLMOSError) as exc:
                    cause = from_exception(exc).message
                    show(top_view.view(before, frame.Rates(), console.height, cause))
                    continue
                show(top_view.view(now, frame.rates(before, now), console.height))
                before = now


def _print(
    session: Session,
    look: Callable[[], frame.Sample],
    before: frame.Sample,
    interval: float,
    once: bool,
) -> None:
    wait = min(interval, _FIRST_S)
    while True:
        time.sleep(wait)
        now = look()
        rate = frame.rates(before, now)
        if session.json:
            print(json.dumps(frame.value(now, rate), ensure_ascii=False), flush=True)
        else:
            from rich.console import Console

            from llmos.clients.ctl import top_view

            console = Console(highlight=False)
            if not console.is_terminal:
                console = Console(highlight=False, width=160)
            console.print(top_view.view(now, rate))
        if once:
            return
        before, wait = now, interval


def _looker(session: Session) -> Callable[[], frame.Sample]:
    from llmos.api.kernel.v1 import admin_pb2 as pb
    from llmos.api.kernel.v1 import admin_pb2_grpc

    stub = session.kernel(admin_pb2_grpc.AdminStub)
    limit = session.limit(_LIMIT_S)

    def look() -> frame.Sample:
        return frame.Sample(
            at=time.monotonic(),
            stats=stub.GetStats(pb.GetStatsRequest(), timeout=limit),
            ports=stub.ListPorts(pb.ListPortsRequest(), timeout=limit),
            services=stub.ListServices(pb.ListServicesRequest(), timeout=limit),
            tenants=stub.ListTenants(pb.ListTenantsRequest(), timeout=limit),
        )

    return look
