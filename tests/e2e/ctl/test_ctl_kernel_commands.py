"""`llmos-ctl kernel` against a whole LLM OS: what it shows, changes and replays."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ctl_forked
import grpc
import pytest
from kernel_process import end
from whole_os import WholeOS

from llmos.api.kernel.v1 import record_pb2
from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc
from llmos.lib.port import Port


def command(system: WholeOS, *words: str) -> list[str]:
    ctl = [sys.executable, "-m", "llmos.clients.ctl", "--state-dir", str(system.state_dir)]
    return [*ctl, "kernel", *words]


@contextlib.contextmanager
def busy(system: WholeOS) -> Iterator[None]:
    """Keep calling while inside."""
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            system.ok("model", "ls")

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_top_once(os_up: WholeOS) -> None:
    with busy(os_up):
        text = os_up.ok("kernel", "top", "--once")
        frame = os_up.json("kernel", "top", "--once")
    assert "calls/s" in text and "PORTS" in text and "QUEUES" in text and "TENANTS" in text
    names = {port["name"] for port in frame["ports"]}
    assert {"storage", "memory", "execution", "optimizer", "gateway", "init"} <= names
    assert all(name in text for name in ("storage", "execution", "local"))
    assert frame["calls_per_s"] > 0 and frame["stats"]["pid"] == os_up.pid("kernel")
    assert [t["limits"]["tenant"] for t in frame["tenants"]] == ["local"]


def test_top_lives_on_a_terminal_until_q(os_up: WholeOS) -> None:
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    words = command(os_up, "top", "--interval", "0.2")
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    try:
        shown = read_until(master, lambda text: text.count("calls/s") >= 4)
        assert "storage" in shown and "\x1b[?1049h" in shown, "it has a screen of its own"
        os.write(master, b"q")
        read_until(master, lambda text: "\x1b[?1049l" in text)
        assert process.wait(10) == 0
    finally:
        end(process, grace_s=0)
        os.close(master)


def read_until(number: int, what: Any, limit_s: float = 30) -> str:
    text, until = "", time.monotonic() + limit_s
    while not what(text):
        assert time.monotonic() < until, text
        if select.select([number], [], [], 0.1)[0]:
            text += os.read(number, 1 << 16).decode(errors="replace")
    return text


def test_tenants_and_limits(os_up: WholeOS) -> None:
    header, *rows = os_up.ok("kernel", "tenants").splitlines()
    assert header.split() == "TENANT WEIGHT OPEN MAX-CALLS CALLS/S COST/S ENDED COST".split()
    assert any(row.split()[0] == "local" for row in rows)
    before = os_up.json("kernel", "limits")
    changed = os_up.json("kernel", "limits", "--set", "ageing_s=7.5", "--set", "max_attempts=3")
    assert changed == {**before, "ageing_s": 7.5, "max_attempts": 3}
    assert re.search(r"^ageing_s +7\.5$", os_up.ok("kernel", "limits"), re.M)
    os_up.ok(
        *("kernel", "limits", "--set", f"ageing_s={before['ageing_s']}"),
        *("--set", f"max_attempts={before['max_attempts']}"),
    )
    assert os_up.json("kernel", "limits") == before
    alice = os_up.json("kernel", "limits", "--tenant", "alice", "--weight", "2", "--max-calls", "9")
    assert alice["weight"] == 2 and alice["max_calls"] == 9
    tenants = {t["limits"]["tenant"]: t["limits"] for t in os_up.json("kernel", "tenants")}
    assert tenants["alice"] == alice
    bad = os_up.ctl("kernel", "limits", "--tenant", "alice", "--weight", "0")
    assert bad.returncode == 2 and bad.stderr.startswith("llmos-ctl: weight = 0")


@contextlib.contextmanager
def listening(system: WholeOS, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run `kernel events`; inside, it is subscribed."""
    process = subprocess.Popen(
        command(system, "events", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert "listening to" in process.stderr.readline()
        yield process
    finally:
        end(process, grace_s=0)


def test_events_and_publish(os_up: WholeOS) -> None:
    assert os_up.ok("kernel", "publish", "x.y") == "x.y: Nobody listens to it.\n"
    with listening(os_up, "deploy.*", "--count", "2", "-o", "json") as process:
        said = os_up.ok("kernel", "publish", "deploy.done", '{"version": 7}')
        assert said == "deploy.done: One subscriber has it.\n"
        os_up.ok("kernel", "publish", "other.topic", "no")
        os_up.ok("kernel", "publish", "deploy.note", "plain words")
        assert process.stdout is not None
        first, second = (json.loads(line) for line in process.stdout)
        assert process.wait(10) == 0
    assert (first["topic"], first["payload"], first["missed"]) == ("deploy.done", {"version": 7}, 0)
    assert (second["topic"], second["payload"]) == ("deploy.note", "plain words")
    assert first["publisher"] == "a plain client"


def test_servers_tell_what_happens(os_up: WholeOS, tmp_path: Path) -> None:
    """Docs in docs/events.md: a model is imported, loaded, and unloaded."""
    from model_files import tiny_onnx

    path = tiny_onnx(tmp_path / "told.onnx", seed=11)
    with listening(os_up, "version.*", "model.*", "--count", "3") as process:
        os_up.ok("model", "import", str(path), "--name", "told")
        os_up.ok("model", "load", "told")
        os_up.ok("model", "unload", "told")
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        assert process.wait(10) == 0
    os_up.ok("model", "rm", "told@1")
    topics = [line.split()[1] for line in lines]
    assert topics == ["version.registered", "model.loaded", "model.unloaded"]
    assert all('model="told@1"' in line for line in lines)
    assert [line.rsplit("(")[-1].rstrip(")") for line in lines] == ["storage", *["execution"] * 2]


def test_wrong_events(os_up: WholeOS) -> None:
    for words in (["publish", "a*b"], ["publish", ""], ["publish", "big", "x" * 70_000]):
        done = os_up.ctl("kernel", *words)
        assert done.returncode in (2, 6) and done.stderr.count("\n") == 1, done.stderr


@pytest.fixture
async def recording(tmp_path: Path) -> Path:
    """A recording of a real kernel with a port and calls."""
    from llmos.kernel.transport.server import KernelServer

    path, address = tmp_path / "run.rec", f"unix:{tmp_path}/k.sock"
    kernel = KernelServer(record=path)
    await kernel.start([address])
    port = Port(address, "client")
    await port.start()
    stub = registry_pb2_grpc.RegistryStub(port.channel)
    for _ in range(3):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stub.ListVersions(registry_pb2.ListVersionsRequest(), timeout=0.1)
    await port.stop(1)
    await kernel.stop(0)
    return path


def ctl(*words: str) -> subprocess.CompletedProcess[str]:
    return ctl_forked.run("kernel", *words)


def test_replay(recording: Path) -> None:
    done = ctl("replay", str(recording))
    assert done.returncode == 0, done.stderr
    header, *rows, summary = done.stdout.splitlines()
    assert header.split()[:4] == ["SECONDS", "EVENT", "OF", "ENVELOPES"]
    assert {row.split()[1] for row in rows} >= {"attached", "received", "detached"}
    assert summary.startswith(f"{len(rows)} events, all the same (recorded by llmos ")
    lines = [
        json.loads(line) for line in ctl("replay", str(recording), "-o", "json").stdout.splitlines()
    ]
    assert lines[-1]["events"] == len(rows) == len(lines) - 1
    assert ctl("replay", str(recording), "--differences").stdout.count("\n") == 2


def test_replay_of_something_else(recording: Path, tmp_path: Path) -> None:
    """One event's checksum is not that of what the core does."""
    data, changed, position = recording.read_bytes(), bytearray(), 0
    records = []
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        records.append(data[position + 4 : position + 4 + length])
        position += 4 + length
    event = record_pb2.RecordedEvent.FromString(records[3])
    event.actions_crc ^= 1
    records[3] = event.SerializeToString()
    for record in records:
        changed += len(record).to_bytes(4, "big") + record
    path = tmp_path / "changed.rec"
    path.write_bytes(changed)
    done = ctl("replay", str(path), "--differences")
    assert done.returncode == 11 and "1 of" in done.stderr and "came out differently" in done.stderr
    _, differing, summary = done.stdout.splitlines()
    assert "DIFFERS" in differing and "1 came out differently" in summary
