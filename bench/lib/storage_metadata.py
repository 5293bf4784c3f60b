"""Rates of the registry's metadata, beside MLflow's registry in the same run where it is there.

Both write to SQLite on the same disk. MLflow's store is called in its own process, as a library:
no HTTP is counted for it, and no gRPC for ours.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import insert, text

from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.db.tables_blobs import blobs
from llmos.servers.storage.db.tables_registry import models
from llmos.servers.storage.model import Draft, File, Filters, Format, Task
from llmos.servers.storage.registry import Registry, moves

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
import postgres

PEER = Path(__file__).parents[1] / ".peers" / "mlflow" / "bin" / "python"
MANY = 100_000  # versions of the long listing
_NAMES = 1000
_ROUNDS = 3

# Runs in MLflow's environment: argv = folder, calls of each kind; prints {operation: calls/s}.
MLFLOW = """
import json, sys, time
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
store = SqlAlchemyStore("sqlite:///" + sys.argv[1] + "/mlflow.db")
count = int(sys.argv[2])
store.create_registered_model("m")
def rate(call):
    begin = time.perf_counter()
    for number in range(1, count + 1):
        call(number)
    return count / (time.perf_counter() - begin)
print(json.dumps({
    "create": rate(lambda n: store.create_model_version("m", "file:///x/%d" % n)),
    "get": rate(lambda n: store.get_model_version("m", str(n))),
    "alias": rate(lambda n: store.set_registered_model_alias("m", "prod", str(n))),
    "by_alias": rate(lambda n: store.get_model_version_by_alias("m", "prod")),
}))
"""


def metadata_rates(calls: int = 200) -> dict[str, Any]:
    """Return calls per second of ours and MLflow's, and milliseconds of a page of 100,000."""
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(_ROUNDS):  # interleaved: both see the same weather
        with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
            ours.append(_ours(Path(folder), calls))
            if PEER.exists():
                theirs.append(_mlflow(Path(folder), calls))
    result: dict[str, Any] = {"calls_per_s": _medians(ours)}
    if theirs:
        peer = _medians(theirs)
        result["mlflow_calls_per_s"] = peer
        result["ratio"] = {k: round(v / peer[k], 2) for k, v in result["calls_per_s"].items()}
    else:
        result["mlflow"] = "not installed: run make bench-peers"
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
        result["page_of_100_from_100000_ms"] = pages(Path(folder))
        with postgres.server() as server:
            if server is None:
                result["postgresql"] = "not installed: apt-get install postgresql"
                return result
            with server.database() as url:
                result["page_of_100_from_100000_ms_postgresql"] = pages(Path(folder), url)
    return result


def _ours(folder: Path, calls: int) -> dict[str, float]:
    database = Database(folder / "registry.db")
    registry = Registry(database, folder)

    def create(number: int) -> None:
        digest = f"{number:064x}"
        with database.write() as sql:
            sql.execute(insert(blobs), {"sha256": digest, "size": 1, "touched": time.time()})
            registry.insert(sql, Draft("m", (File("model.gguf", digest, 1),)))

    def alias(number: int) -> None:
        with database.write() as sql:
            moves.point(sql, "m", "prod", number, None)

    try:
        return {
            "create": _rate(create, calls),
            "get": _rate(lambda number: registry.get(f"m@{number}"), calls),
            "alias": _rate(alias, calls),
            "by_alias": _rate(lambda _: registry.get("m@prod"), calls),
        }
    finally:
        database.close()


def _mlflow(folder: Path, calls: int) -> dict[str, float]:
    done = subprocess.run(
        [str(PEER), "-c", MLFLOW, str(folder), str(calls)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _rate(call: Callable[[int], object], calls: int) -> float:
    begin = time.perf_counter()
    for number in range(1, calls + 1):
        call(number)
    return calls / (time.perf_counter() - begin)


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(r[key] for r in rounds), 1) for key in rounds[0]}


def fill(database: Database, count: int) -> None:
    """Register `count` versions of 1,000 names that share one file, in one transaction.

    By SQL that both databases know: one row at a time would take PostgreSQL a minute.
    """
    series = "WITH RECURSIVE s (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM s WHERE i + 1 < :n) "
    name = "'model-' || substr(CAST(10000 + i / :each AS TEXT), 2)"
    number = "i % :each + 1"
    about = {"format": int(Format.GGUF), "task": int(Task.GENERATE), "architecture": "'llama'"}
    about |= {"parameters": 1, "dtype": "'F32'", "context_length": 1, "license": "''"}
    about |= {"source": "''", "job": "''", "step": "''", "created": time.time()}
    columns, values = ", ".join(about), ", ".join(map(str, about.values()))
    digest, given = "0" * 64, {"n": count, "each": count // _NAMES}
    with database.write() as sql:
        sql.execute(insert(blobs), {"sha256": digest, "size": 1, "touched": time.time()})
        named = [
            {"name": f"model-{name:04}", "last_version": count // _NAMES} for name in range(_NAMES)
        ]
        sql.execute(insert(models), named)
        for insertion in (
            f"versions (name, version, digest, {columns}) "
            f"SELECT {name}, {number}, CAST(i AS TEXT), {values} FROM s",
            "files (name, version, position, file, sha256) "
            f"SELECT {name}, {number}, 0, 'model.gguf', '{digest}' FROM s",
        ):
            sql.execute(text(f"{series} INSERT INTO {insertion}"), given)
        sql.execute(text("ANALYZE"))  # as PostgreSQL does by itself, some time later


def pages(folder: Path, url: str = "", count: int = MANY) -> dict[str, float]:
    """Return the milliseconds of a page of 100 versions, by where and how it is asked for.

    url: of an empty PostgreSQL database; "" = a SQLite file in `folder`.
    """
    database = Database(url or folder / "registry.db")
    try:
        fill(database, count)
        registry = Registry(database, folder)
        deep = ""
        for _ in range(count // 2000):
            deep = registry.page("", 1000, deep).next_token
        listings: dict[str, Callable[[], object]] = {
            "first": lambda: registry.page("", 100, ""),
            "middle": lambda: registry.page("", 100, deep),
            "by_task": lambda: registry.page("", 100, "", Filters(task=Task.GENERATE)),
            "none_of_a_tag": lambda: registry.page("", 100, "", Filters(tags={"absent": ""})),
            "search": lambda: registry.page("", 100, "", Filters(search="-0999")),
            "one_model": lambda: registry.page("model-0500", 100, ""),
        }
        return {name: _median_ms(call) for name, call in listings.items()}
    finally:
        database.close()


def _median_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1000)
    return round(statistics.median(times), 2)
