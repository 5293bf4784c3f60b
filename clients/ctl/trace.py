"""`llmos-ctl trace ID`: where the time of one call went."""

from __future__ import annotations

import calendar
import json
import re
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from llmos.clients.ctl import complete
from llmos.clients.ctl.output import as_value, duration
from llmos.clients.ctl.progress import status
from llmos.clients.ctl.session import QUICK_S, UINT32, Session, command
from llmos.lib.errors import NotFound

_WIDTH = 48  # characters of the waterfall
_SHOWN = {"time", "level", "process", "logger", "message", "call"}
Part = tuple[str, float, float]  # what, from, to; seconds since the call began


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    examples = ["llmos-ctl trace req_5f0c6a52", "llmos-ctl trace 1a3 -o json"]
    command(app, examples=examples)(trace)


def trace(
    session: Session,
    id: Annotated[
        str,
        typer.Argument(
            help="The x-request-id of an HTTP request or of a gRPC call's metadata, or a call's "
            "id of `llmos-ctl kernel calls` or of a log.",
            autocompletion=complete.calls,
        ),
    ],
    lines: Annotated[
        int, typer.Option(min=1, max=UINT32, help="How far back to read each log, lines.")
    ] = 5000,
) -> None:
    """Show where the time of a call went: what runs of it now, its waterfall, and what was logged.

    The waterfall is of requests through the gateway, whose log has what it measured, and of every
    gRPC call that took a tenth of a second, from the logs of the kernel's servers. A call that runs
    is shown with the calls that it made.
    """
    with status("reading logs"):
        running = _running(session, id)
        logged = sorted(_logged(session, id, lines), key=lambda line: str(line.get("time", "")))
    if not running and not logged:
        raise NotFound(
            "NO_SUCH_CALL",
            f"No call {id[:80]!r} runs, and no log has it in its last {lines} lines; --lines reads "
            "further back.",
        )
    request = next((line for line in logged if line.get("message") == "request"), None)
    parts = waterfall(request) if request is not None else served(logged)
    value = {
        "id": id,
        "running": running,
        "waterfall": [{"what": w, "from_s": a, "to_s": b} for w, a, b in parts],
        "log": logged,
    }
    if session.json:
        session.out.say("", value)
        return
    _print_running(running)
    if request is not None:
        about = [request.get("route"), request.get("model"), f"status {request.get('status')}"]
        print("  ".join(str(word) for word in about if word))
    if parts:
        print("\n".join(drawn(parts)))
    _print_log(logged, request)


def waterfall(request: dict[str, Any]) -> list[Part]:
    """Return the parts of a request by the gateway's log line about it, in order of time."""
    total = float(request.get("seconds", 0.0))
    parts: list[Part] = [("request", 0.0, total)]
    first = request.get("first_token_s")
    if first is None:  # no generation, or it failed before its first token
        if "call_from_s" in request:
            asked, told = float(request["call_from_s"]), float(request["call_to_s"])
            parts.append(("gateway: reading the request", 0.0, asked))
            parts.append(("the OS: routing, queue, the answer", asked, told))
            parts.append(("gateway: writing the answer", told, max(total, told)))
        return parts
    in_worker = min(float(first), float(request.get("worker_first_token_s", 0.0)))
    decode = float(request.get("worker_decode_s", 0.0))
    came = float(first) - in_worker
    end = min(total, float(first) + decode)
    parts.append(("waiting: routing, queue, loading", 0.0, came))
    parts.append(("worker: prompt to first token", came, float(first)))
    parts.append(("worker: further tokens", float(first), end))
    parts.append(("rest: reading, writing, accounting", end, total))
    return parts


def served(lines: list[dict[str, Any]]) -> list[Part]:
    """Return the parts of the calls that servers logged, on one line of time."""
    calls = []
    for line in lines:
        if line.get("message") == "served":
            seconds, waited = float(line.get("seconds", 0.0)), float(line.get("waited_s", 0.0))
            calls.append((_unix(str(line.get("time", ""))) - seconds - waited, waited, line))
    calls.sort(key=lambda call: call[0])
    parts: list[Part] = []
    for opened, waited, line in calls:
        begin = opened - calls[0][0]
        end = begin + waited + float(line.get("seconds", 0.0))
        name = str(line.get("method", "")).rpartition(".")[2]
        parts.append((f"{name} {line.get('key', '')}".strip(), begin, end))
        parts.append(("waiting: routing, queue, loading", begin, begin + waited))
        where = line.get("process")
        if "first_reply_s" in line:
            first = begin + waited + float(line["first_reply_s"])
            parts.append((f"{where}: first reply", begin + waited, first))
            parts.append((f"{where}: further replies", first, max(first, end)))
        else:
            parts.append((f"{where}", begin + waited, end))
    return parts


def drawn(parts: list[Part]) -> list[str]:
    """Return the waterfall as lines of text."""
    total = max((to for _, _, to in parts), default=0.0) or 1.0
    lines = []
    for what, begin, end in parts:
        left = round(begin / total * _WIDTH)
        long = max(1, round((end - begin) / total * _WIDTH)) if end > begin else 0
        bar = " " * min(left, _WIDTH - 1) + "█" * long
        lines.append(f"  {what:<36} {(end - begin) * 1000:>10,.1f} ms  {bar}")
    return lines


def _running(session: Session, id: str) -> list[dict[str, Any]]:
    """Return the call and those below it, as far as they wait or run now."""
    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc

    stub = session.kernel(admin_pb2_grpc.AdminStub)
    request = admin_pb2.ListCallsRequest(page_size=10_000)
    calls = stub.ListCalls(request, timeout=session.limit(QUICK_S)).calls
    family = {id}
    for _ in calls:  # as deep as calls can nest
        family |= {call.id for call in calls if call.parent in family}
    return [as_value(call) for call in calls if call.id in family]


def _logged(session: Session, id: str, lines: int) -> list[dict[str, Any]]:
    """Return the log lines about a call, or about those with a request's id, of all processes."""
    import grpc

    from llmos.api.init.v1 import init_pb2, init_pb2_grpc

    stub = session.init(init_pb2_grpc.InitStub)
    limit = session.limit(QUICK_S)
    listed = stub.ListProcesses(init_pb2.ListProcessesRequest(), timeout=limit).processes
    found: list[str] = []
    for name in {process.name for process in listed}:
        request = init_pb2.ReadLogRequest(name=name, lines=lines)
        try:
            for reply in stub.ReadLog(request, timeout=limit):
                found += reply.lines
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.NOT_FOUND:  # not every process has a log
                raise
    calls = {id} | {
        str(members.get("call", ""))
        for members in _parsed(line for line in found if id in line)
        if members.get("request") == id
    }
    mentions = re.compile("|".join(map(re.escape, calls - {""})))
    wanted = _parsed(line for line in found if mentions.search(line))
    return [members for members in wanted if members.get("call") in calls]


def _parsed(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the lines that are JSON objects; other programs write as they like."""
    for line in lines:
        try:
            members = json.loads(line)
        except ValueError:
            continue
        if isinstance(members, dict):
            yield members


def _print_running(running: list[dict[str, Any]]) -> None:
    for call in running:
        method = call["method"].rsplit(".", 1)[-1]
        where = f"runs on port {call['server']}" if call["server"] else "is queued"
        key = f" {call['key']}" if call["key"] else ""
        age, tries = duration(call["age_s"]), call["attempt"] + 1
        print(f"{call['id']}  {method}{key}  {where}, {age} old, attempt {tries}")


def _print_log(logged: list[dict[str, Any]], request: dict[str, Any] | None) -> None:
    others = [line for line in logged if line is not request]
    if others:
        print("logged:")
    begin = _unix(str(others[0].get("time", ""))) if others else 0.0
    for line in others:
        offset = _unix(str(line.get("time", ""))) - begin
        more = " ".join(f"{k}={v}" for k, v in line.items() if k not in _SHOWN)
        print(f"  +{offset:8.3f} s  {line.get('process')}: {line.get('message')} {more}".rstrip())


def _unix(stamp: str) -> float:
    """Return Unix seconds of a log's time; 0 for one that is none."""
    try:
        whole = calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))
        return whole + float(stamp[19:].rstrip("Z") or 0)
    except ValueError:
        return 0.0
