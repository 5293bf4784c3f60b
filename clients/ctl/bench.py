"""`llmos-ctl bench`: a quick measurement of the running system, as a client sees it."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from llmos.clients.ctl import complete, run
from llmos.clients.ctl.output import duration
from llmos.clients.ctl.progress import count_bar, note
from llmos.clients.ctl.session import INTERACTIVE, QUICK_S, Session, command

PROMPT = "Write a long story about a lighthouse and the sea."
_CALLS = 300  # unary calls of the first part


@dataclass(frozen=True)
class Answer:
    """One generation: seconds to its first piece, seconds in all, and what the worker measured."""

    first_s: float
    total_s: float
    tokens: int
    worker_first_s: float
    worker_decode_s: float


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    examples = ["llmos-ctl bench smollm2", "llmos-ctl bench smollm2 -c 8 -n 16 -o json"]
    command(app, examples=examples)(bench)


def bench(
    session: Session,
    model: Annotated[
        str, typer.Argument(help="A model that chats.", autocompletion=complete.models)
    ],
    concurrency: Annotated[
        int, typer.Option("-c", "--concurrency", min=1, max=256, help="Answers at the same time.")
    ] = 4,
    count: Annotated[
        int, typer.Option("-n", "--count", min=1, max=10_000, help="Answers at each concurrency.")
    ] = 8,
    max_tokens: Annotated[int, typer.Option(min=2, max=4096, help="Tokens of each answer.")] = 48,
) -> None:
    """Measure the kernel's round trip, and the answers of a model one by one and at the same time.

    The model is loaded first, which is not counted. Every answer is generated greedily, for the
    same prompt with another first word, so that no former one is found in a cache. The figures are
    of this client, with all hops, under whatever else the machine does now.
    """
    note(f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    begin = time.monotonic()
    _ask(session, model, 2, "warm")
    warm_s = time.monotonic() - begin
    trips = _round_trips(session)
    alone = _many(session, model, 1, min(count, 4), max_tokens)
    crowd = _many(session, model, concurrency, count, max_tokens) if concurrency > 1 else alone
    value = {
        "model": model,
        "max_tokens": max_tokens,
        "load_average": os.getloadavg()[0],
        "first_call_s": warm_s,
        "round_trip": _spread(trips),
        "one": _summary(*alone, 1),
        "many": _summary(*crowd, concurrency),
    }
    session.out.fields(_lines(value), value)


def _lines(value: dict[str, Any]) -> dict[str, str]:
    trip = value["round_trip"]
    lines = {
        "first call": f"{duration(value['first_call_s'])} (with loading, if it was not loaded)",
        "round trip": f"p50 {trip['p50'] * 1000:.2f} ms, p99 {trip['p99'] * 1000:.2f} ms, "
        f"{trip['count']} calls of the kernel itself",
    }
    for name, part in (("one by one", value["one"]), ("at once", value["many"])):
        first = part["first_token_s"]
        lines[name] = f"{part['answers']} answers, {part['concurrency']} at a time"
        lines[f"  {name}: first token"] = (
            f"p50 {first['p50'] * 1000:.0f} ms, p95 {first['p95'] * 1000:.0f} ms; "
            f"of it outside the worker p50 {part['outside_worker_s']['p50'] * 1000:.1f} ms"
        )
        lines[f"  {name}: tokens/s"] = (
            f"{part['tokens_per_s']:.1f} in all, {part['tokens_per_s_each']:.1f} each"
        )
    return lines


def _round_trips(session: Session) -> list[float]:
    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc

    stub = session.kernel(admin_pb2_grpc.AdminStub)
    taken = []
    for _ in range(_CALLS):
        begin = time.perf_counter()
        stub.GetStats(admin_pb2.GetStatsRequest(), timeout=session.limit(QUICK_S))
        taken.append(time.perf_counter() - begin)
    return taken[10:]  # the first ones open the connection


def _ask(session: Session, model: str, max_tokens: int, word: str) -> Answer:
    """Ask once. Raises what the call ends with."""
    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc

    settings = run.Settings(max_tokens=max_tokens, temperature=0.0)
    request = run.build(model, [("user", f"{word}: {PROMPT}")], settings)
    stub = session.kernel(execution_pb2_grpc.ExecutionStub)
    begin = time.perf_counter()
    first, usage = 0.0, execution_pb2.Usage()
    for piece in stub.Generate(request, timeout=session.limit(), metadata=INTERACTIVE):
        first = first or time.perf_counter() - begin
        usage = piece.usage  # set in the last piece
    total = time.perf_counter() - begin
    return Answer(first, total, usage.completion_tokens, usage.first_token_s, usage.decode_s)


def _many(
    session: Session, model: str, concurrency: int, count: int, max_tokens: int
) -> tuple[list[Answer], float]:
    """Ask `count` times from so many threads; return the answers and the seconds that it took."""
    answers: list[Answer] = []
    failures: list[BaseException] = []
    waiting = list(range(count))
    lock = threading.Lock()

    def ask(tell: Callable[[int, int], None]) -> None:
        while True:
            with lock:
                if not waiting or failures:
                    return
                number = waiting.pop()
            try:
                answer = _ask(session, model, max_tokens, f"{concurrency}.{number}")
            except BaseException as exc:  # it goes on in the thread that waits for this one
                with lock:
                    failures.append(exc)
                return
            with lock:
                answers.append(answer)
                tell(len(answers), count)

    begin = time.perf_counter()
    with count_bar("answers") as tell:
        threads = [
            threading.Thread(target=ask, args=(tell,), daemon=True) for _ in range(concurrency)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return answers, time.perf_counter() - begin


def _summary(answers: list[Answer], took_s: float, concurrency: int) -> dict[str, Any]:
    each = [(a.tokens - 1) / (a.total_s - a.first_s) for a in answers if a.tokens > 1]
    return {
        "concurrency": concurrency,
        "answers": len(answers),
        "tokens": sum(a.tokens for a in answers),
        "seconds": took_s,
        "tokens_per_s": sum(a.tokens for a in answers) / took_s,
        "tokens_per_s_each": statistics.median(each) if each else 0.0,
        "first_token_s": _spread([a.first_s for a in answers]),
        "outside_worker_s": _spread([max(0.0, a.first_s - a.worker_first_s) for a in answers]),
        "total_s": _spread([a.total_s for a in answers]),
    }


def _spread(values: list[float]) -> dict[str, float]:
    """Return quantiles by nearest rank."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return {"count": len(ordered), "p50": at(0.5), "p95": at(0.95), "p99": at(0.99)}
