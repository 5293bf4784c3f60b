"""The kernel's IPC against its floors, in one run: see `docs/benchmarks.md`.

Separate processes for client, kernel and server on Unix sockets, 128-byte payloads, uvloop. Floors:
a direct grpc.aio unary call, a grpc.aio proxy hop, nginx grpc_pass, a C++ gRPC server under h2load
(both left out where absent). Rounds are interleaved; figures are medians over rounds; the last line
is one JSON object.
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from lib.ipc_cpp import cpp_echo

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.core import Core
from llmos.kernel.core.events import Attached, Received
from llmos.kernel.core.limits import Limits

ROLES = str(Path(__file__).with_name("lib") / "ipc_roles.py")
ROUNDS = int(os.environ.get("ROUNDS", "3"))
SECONDS = os.environ.get("SECONDS_EACH", "3")
MIB4 = str(4 << 20)


class Bench:
    """The running processes and the figures so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.samples: dict[str, list[float]] = {}
        self._running: list[subprocess.Popen[str]] = []

    def address(self, name: str) -> str:
        return f"unix:{self.folder}/{name}.sock"

    def spawn(self, *argv: str, ready: bool = True) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._running.append(process)
        if ready:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "ready", argv
        return process

    def kernel(self, name: str) -> tuple[subprocess.Popen[str], float]:
        """Start a kernel; return it and the seconds until it listened."""
        started = time.perf_counter()
        address = self.address(name)
        process = self.spawn(
            "-m", "llmos.kernel", "--tcp", "none", "--listen", address,
            "--state-dir", str(self.folder / name), "--log-level", "error",
            ready=False,
        )  # fmt: skip
        while not Path(address.removeprefix("unix:")).exists():
            time.sleep(0.005)
        return process, time.perf_counter() - started

    def stop(self, *processes: subprocess.Popen[str]) -> None:
        for process in processes or tuple(self._running):
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
            self._running.remove(process)

    def measure(self, *argv: str, clients: int = 1) -> list[dict[str, Any]]:
        """Run the load role in `clients` processes at once; return what each printed."""
        runs = [self.spawn(ROLES, *argv, ready=False) for _ in range(clients)]
        results = []
        for run in runs:
            out, _ = run.communicate(timeout=120)
            self._running.remove(run)
            results.append(json.loads(out.strip().splitlines()[-1]))
        return results

    def load(
        self, key: str, kind: str, where: str, outstanding: int, size: str = "128"
    ) -> dict[str, Any]:
        result = self.measure("load", kind, self.address(where), str(outstanding), SECONDS, size)[0]
        self.samples.setdefault(f"{key}.rate", []).append(result["rate"])
        self.samples.setdefault(f"{key}.p50_ms", []).append(result["p50_ms"])
        self.samples.setdefault(f"{key}.p99_ms", []).append(result["p99_ms"])
        say(f"  {key:26} {result['rate']:10.0f}/s   p50 {result['p50_ms']:.3f} ms")
        return result

    def median(self, key: str) -> float:
        return statistics.median(self.samples[key])


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def nginx(bench: Bench) -> Iterator[bool]:
    """nginx as a gRPC proxy in front of the direct server, where it is installed."""
    if shutil.which("nginx") is None:
        yield False
        return
    folder = bench.folder / "nginx"
    folder.mkdir()
    (folder / "nginx.conf").write_text(
        f"""user root; daemon off; worker_processes 1; pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{ access_log off; client_max_body_size 0;
  server {{ listen unix:{bench.folder}/nginx.sock http2; keepalive_requests 100000000;
    location / {{ grpc_pass grpc://unix:{bench.folder}/direct.sock; }} }} }}
"""
    )
    process = subprocess.Popen(
        ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")],
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (bench.folder / "nginx.sock").exists():
            if process.poll() is not None:
                yield False
                return
            time.sleep(0.01)
        yield True
    finally:
        process.terminate()
        process.wait()


def calls(bench: Bench, out: dict[str, Any]) -> None:
    """Latency and throughput of small and large calls, paired with the floors."""
    kernel, out["kernel_start_s"] = bench.kernel("k")
    bench.spawn(ROLES, "direct", bench.address("direct"))
    bench.spawn(ROLES, "proxy", bench.address("proxy"), bench.address("direct"))
    bench.spawn(ROLES, "port-server", bench.address("k"), "0", "0")
    out["kernel_rss_mb"] = psutil.Process(kernel.pid).memory_info().rss / 1e6
    with nginx(bench) as has_nginx, cpp_echo(bench.folder) as cpp:
        for number in range(ROUNDS):
            say(f"round {number + 1}/{ROUNDS}")
            bench.load("direct_1", "stub", "direct", 1)
            bench.load("port_1", "port", "k", 1)
            bench.load("direct_64", "stub", "direct", 64)
            before = cpu(kernel)
            ran = bench.load("port_64", "port", "k", 64)
            used = cpu(kernel) - before
            bench.samples.setdefault("kernel_us", []).append(used / ran["calls"] * 1e6)
            bench.load("proxy_64", "stub", "proxy", 64)
            bench.load("stub_64", "stub", "k", 64)
            if has_nginx:
                bench.load("nginx_64", "stub", "nginx", 64)
            if cpp is not None:
                rate = cpp(64, math.ceil(float(SECONDS)))
                bench.samples.setdefault("cpp_64.rate", []).append(rate)
                say(f"  {'cpp_64':26} {rate:10.0f}/s")
            many = bench.measure(
                "load", "port", bench.address("k"), "64", SECONDS, "128", clients=8
            )
            rate = sum(r["rate"] for r in many)
            bench.samples.setdefault("port_512.rate", []).append(rate)
            say(f"  {'port_512 (8 clients)':26} {rate:10.0f}/s")
            bench.load("direct_4mib", "stub", "direct", 1, MIB4)
            bench.load("port_4mib", "port", "k", 1, MIB4)
    m = bench.median
    out["p50_vs_direct_1"] = m("port_1.p50_ms") / m("direct_1.p50_ms")
    out["throughput_vs_direct_64"] = m("port_64.rate") / m("direct_64.rate")
    out["throughput_vs_proxy_64"] = m("port_64.rate") / m("proxy_64.rate")
    out["throughput_512_vs_1_client"] = m("port_512.rate") / m("port_64.rate")
    out["stub_vs_direct_64"] = m("stub_64.rate") / m("direct_64.rate")
    out["inline_4mib_vs_direct"] = m("port_4mib.rate") / m("direct_4mib.rate")
    out["kernel_cpu_us_per_call"] = m("kernel_us")
    out["nginx_64_vs_direct_64"] = (
        m("nginx_64.rate") / m("direct_64.rate") if "nginx_64.rate" in bench.samples else None
    )
    out["throughput_vs_cpp_64"] = (
        m("port_64.rate") / m("cpp_64.rate") if "cpp_64.rate" in bench.samples else None
    )
    bench.stop()


def cpu(process: subprocess.Popen[str]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def classes(bench: Bench, out: dict[str, Any]) -> None:
    """INTERACTIVE calls while BATCH ones saturate a server of 16 credits and 5 ms a call."""
    bench.kernel("c")
    bench.spawn(ROLES, "port-server", bench.address("c"), "0.005", "16")
    ratios = []
    for _ in range(ROUNDS):
        probe = ("load", "port", bench.address("c"), "1", SECONDS, "128", "interactive")
        alone = bench.measure(*probe)
        batch = bench.spawn(
            ROLES, "load", "port", bench.address("c"), "128", str(float(SECONDS) + 3), "128",
            "batch", ready=False,
        )  # fmt: skip
        time.sleep(1)
        loaded = bench.measure(*probe)
        batch.communicate(timeout=60)
        bench._running.remove(batch)
        ratios.append(loaded[0]["p99_ms"] / alone[0]["p99_ms"])
        say(f"  interactive p99 {alone[0]['p99_ms']:.2f} -> {loaded[0]['p99_ms']:.2f} ms")
    out["interactive_p99_vs_unloaded"] = statistics.median(ratios)
    bench.stop()


def stream(bench: Bench, out: dict[str, Any]) -> None:
    """Small calls, one at a time, while another client reads streams of 1 GiB."""
    bench.kernel("s")
    bench.spawn(ROLES, "port-server", bench.address("s"), "0", "0")
    bench.spawn(ROLES, "bulk-server", bench.address("s"))
    probe = ("load", "port", bench.address("s"), "1", SECONDS, "128")
    ratios = []
    for _ in range(ROUNDS):
        alone = bench.measure(*probe)[0]["p99_ms"]
        pouring = bench.spawn(ROLES, "pour", bench.address("s"), "1024")
        beside = bench.measure(*probe)[0]["p99_ms"]
        bench.stop(pouring)
        ratios.append(beside / alone)
        say(f"  small p99 {alone:.2f} -> {beside:.2f} ms under a stream of 1 GiB")
    out["small_p99_under_stream"] = statistics.median(ratios)
    bench.stop()


def handle(bench: Bench, out: dict[str, Any]) -> None:
    """4 MiB by buffer handle, as bench/memory.py measures it, against inline over ports here."""
    script = str(Path(__file__).with_name("memory.py"))
    argv = [sys.executable, script, "--buffers"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    by_handle_us = json.loads(done.stdout.splitlines()[-1])["us_p50"]["4MiB_handle_reused_buffer"]
    out["handle_vs_inline_4mib"] = bench.median("port_4mib.p50_ms") * 1e3 / by_handle_us


def overload(bench: Bench, out: dict[str, Any]) -> None:
    """Good answers per second (within 0.2 s) at 1 x and 10 x what the server can do (200/s)."""
    bench.kernel("o")
    bench.spawn(ROLES, "port-server", bench.address("o"), "0.02", "4")
    ratios = []
    for _ in range(ROUNDS):
        once = bench.measure("flood", "port", bench.address("o"), "180", SECONDS, "0.2")[0]
        tenfold = bench.measure("flood", "port", bench.address("o"), "1800", SECONDS, "0.2")[0]
        ratios.append(tenfold["rate"] / once["rate"])
        say(f"  goodput {once['rate']:.0f}/s at 1 x, {tenfold['rate']:.0f}/s at 10 x")
    out["goodput_10x_vs_1x"] = statistics.median(ratios)
    bench.stop()


def queue(out: dict[str, Any]) -> None:
    """The pure core with 10,000 ports and up to 1,000,000 queued calls."""
    core = Core("k", "h", Limits(max_queued=2_000_000, max_queued_per_key=2_000_000))
    for port in range(1, 10_001):
        core.handle(Attached(port), 0.0)
        hello = pb.Hello(protocol=1, name=f"p{port}", instance=f"instance{port}")
        core.handle(Received(port, [pb.Envelope(kind=pb.KIND_HELLO, hello=hello)]), 0.0)
    export = pb.Export(service="bench.Echo", keys=[""], credits=1)
    core.handle(Received(1, [pb.Envelope(call=1, kind=pb.KIND_EXPORT, export=export)]), 0.0)
    server, now, opened = core.ports[1], 1.0, 0

    def frame(calls: int) -> tuple[int, list[pb.Envelope]]:
        nonlocal opened
        first = opened // 64 % 9_999 + 2
        frame = pb.Frame()
        for _ in range(calls):
            opened += 1
            envelope = frame.envelopes.add(call=2 * opened + 1, kind=pb.KIND_OPEN, flags=5)
            envelope.open.method = "/bench.Echo/Echo"
            envelope.payload = b"x" * 128
        return first, list(pb.Frame.FromString(frame.SerializeToString()).envelopes)

    def fill(upto: int) -> None:
        while core.scheduler.queued < upto:
            port, envelopes = frame(64)
            core.handle(Received(port, envelopes), now)

    def cost(events: int) -> float:
        """Seconds per event of: one call ends and the next is dispatched, one call arrives."""
        batches = [frame(1) for _ in range(events // 2)]
        start = time.perf_counter()
        for port, envelopes in batches:
            running = next(iter(server.serving))
            end = pb.Envelope(call=running, kind=pb.KIND_END, flags=1, payload=b"x" * 128)
            core.handle(Received(1, [end]), now)
            core.handle(Received(port, envelopes), now)
        return (time.perf_counter() - start) / events

    fill(1_000)
    cost(2_000)
    small = cost(20_000)
    gc.collect()
    before = psutil.Process().memory_info().rss
    held = core.scheduler.queued
    fill(1_000_000)
    gc.collect()
    grown = psutil.Process().memory_info().rss - before
    out["bytes_per_queued_call"] = grown / (core.scheduler.queued - held)
    gc.freeze()
    large = cost(20_000)
    out["event_cost_ratio_1m_vs_1k"] = large / small
    out["event_us_at_1k"] = small * 1e6
    say(f"  core: {small * 1e6:.1f} us an event at 1,000 queued, {large * 1e6:.1f} at 1,000,000")


def main() -> None:
    """Run everything."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        try:
            calls(bench, out)
            handle(bench, out)
            stream(bench, out)
            classes(bench, out)
            overload(bench, out)
        finally:
            bench.stop()
    queue(out)
    out["medians"] = {k: round(statistics.median(v), 3) for k, v in sorted(bench.samples.items())}
    say(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in out.items()}))


if __name__ == "__main__":
    main()
