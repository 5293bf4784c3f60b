"""The tools of llmos-ctl for every day: doctor, top, bench, trace, init, chat, completion."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
import yaml
from whole_os import WholeOS

from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc
from llmos.lib.config import run_dir


class Screen:
    """A program on a terminal of its own, with what it has written so far."""

    def __init__(self, system: WholeOS, *words: str) -> None:
        self.written = ""
        self._terminal, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 140, 0, 0))
        command = [sys.executable, "-m", "llmos.clients.ctl", "--state-dir", str(system.state_dir)]
        env = {k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")}
        self.process = subprocess.Popen(
            [*command, *words],
            stdin=end,
            stdout=end,
            stderr=end,
            env={**env, "TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(end)

    def type(self, text: str) -> None:
        self.written = ""
        os.write(self._terminal, text.encode())

    def until(self, text: str, timeout_s: float = 60, *, prompt: str = "") -> str:
        """Read until `text` is there; return all since the last `type`.

        prompt: what it must end with then, where a key must meet a program that listens.
        """
        deadline = time.monotonic() + timeout_s
        while text not in self.written or not self.written.endswith(prompt):
            assert time.monotonic() < deadline, f"no {text!r} in {self.written[-2000:]!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                try:
                    self.written += os.read(self._terminal, 65536).decode(errors="replace")
                except OSError:  # it ended
                    assert text in self.written, self.written[-2000:]
        return self.written

    def end(self, timeout_s: float = 60) -> int:
        """Read until the program ends, which a full terminal would keep from it; its exit code."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on: {self.written[-500:]!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                try:
                    self.written += os.read(self._terminal, 65536).decode(errors="replace")
                except OSError:  # it ended
                    self.process.wait(5)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._terminal)


def test_doctor_looks_at_machine_and_system(os_up: WholeOS) -> None:
    found = os_up.json("doctor")
    about = {row["about"]: row for row in found}
    assert {"system", "python", "memory", "disk", "file limit", "kernel", "versions"} <= set(about)
    assert about["kernel"]["state"] == "ok" and "ports are attached" in about["kernel"]["what"]
    assert all(row["cure"] for row in found if row["state"] != "ok")


def test_doctor_fails_for_what_is_bad(tmp_path: Path) -> None:
    system = WholeOS(tmp_path)
    import socket

    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        except OSError:
            pass  # somebody else has it, which is as good
        done = system.ctl("doctor")
    assert done.returncode == 7
    assert "port 8080" in done.stdout and "findings need attention" in done.stderr


def test_top_once_has_every_table(os_up: WholeOS) -> None:
    value = os_up.json("top", "--once")
    names = {row["name"] for row in value["servers"]}
    assert {"kernel", "storage", "memory", "execution", "gateway"} <= names
    assert any(row["name"] == "smollm2" for row in value["models"])
    assert value["devices"][0]["name"] == "cpu" and value["trouble"] == {}
    text = os_up.ok("top", "--once")
    for title in ("SERVERS", "MODELS", "CALLS", "JOBS", "queues"):
        assert title in text


def test_top_restarts_a_server_when_asked_twice(os_up: WholeOS) -> None:
    old = os_up.pid("optimizer")
    screen = Screen(os_up, "top")
    try:
        screen.until("SERVERS")
        names = [row["name"] for row in os_up.json("top", "--once")["servers"]]
        for _ in range(names.index("optimizer")):
            screen.type("j")
            time.sleep(0.2)
        screen.type("r")
        screen.until("restart optimizer? y / n")
        screen.type("n")
        screen.until("Nothing was done.")
        assert os_up.pid("optimizer") == old
        screen.type("r")
        screen.until("restart optimizer? y / n")
        screen.type("y")
        screen.until("optimizer runs again", 90)
        screen.type("x")
        screen.until("Keys here: r restart")
        screen.type("q")
        assert screen.end() == 0
    finally:
        screen.close()
    assert os_up.pid("optimizer") not in (0, old)


def test_chat_on_a_terminal(os_up: WholeOS) -> None:
    screen = Screen(os_up, "chat", "smollm2", "--temperature", "0", "--max-tokens", "400")
    try:
        screen.until("> ")
        screen.type("Tell me a long story about a lighthouse.\n")
        screen.until("\x1b[?25h", 120)  # the spinner has gone, so the answer has begun
        screen.type("\x03")
        screen.until("[stopped]", prompt="> ")  # the answer, not the program
        screen.type("\x03")
        screen.until("[Ctrl-D ends the chat]")
        screen.type("/set max_tokens 6\n")
        screen.until("[max_tokens is 6]")
        screen.type('"""\nWhat is the capital\nof France?\n"""\n')
        screen.until("tokens/s", 120)
        assert "Paris" in screen.written
        screen.type("/history\n")
        assert "lighthouse" not in screen.until("assistant:", prompt="> ")
        screen.type("\x04")
        assert screen.end() == 0
    finally:
        screen.close()
    history = (os_up.state_dir / "chat_history").read_text()
    assert "What is the capital" in history


def test_chat_that_is_piped_in(os_up: WholeOS) -> None:
    said = (
        "/system Answer in one word.\n/model smollm2@1\n/model none\nWhat is 1 + 1?\n/nope\n/quit\n"
        "never said\n"
    )
    done = os_up.ctl("chat", "smollm2", "--temperature", "0", "--max-tokens", "8", stdin=said)
    assert done.returncode == 0 and done.stdout.strip()
    assert "[smollm2@1 answers]" in done.stderr and "there is no /nope" in done.stderr
    assert "[there is no model none; smollm2@1 goes on]" in done.stderr


def test_bench_measures_and_counts(os_up: WholeOS) -> None:
    value = os_up.json("bench", "smollm2", "-c", "2", "-n", "2", "--max-tokens", "4")
    assert value["round_trip"]["count"] > 100 and value["round_trip"]["p50"] > 0
    assert value["many"]["answers"] == 2 and value["many"]["tokens"] <= 8
    assert value["many"]["tokens_per_s"] > 0
    assert value["one"]["first_token_s"]["p50"] > value["one"]["outside_worker_s"]["p50"]
    failed = os_up.ctl("bench", "nobody")
    assert failed.returncode == 3 and "nobody" in failed.stderr


def test_trace_draws_where_the_time_went(os_up: WholeOS) -> None:
    body = {"model": "smollm2", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi."}]}
    headers = {"content-type": "application/json", "x-request-id": "traced-1"}
    url = f"{os_up.gateway()}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as reply:
        assert reply.status == 200
    value = os_up.json("trace", "traced-1")
    parts = {part["what"].partition(":")[2].strip() or part["what"] for part in value["waterfall"]}
    assert {"request", "prompt to first token", "further tokens"} <= parts
    assert "█" in os_up.ok("trace", "traced-1")
    unknown = os_up.ctl("trace", "never-was")
    assert unknown.returncode == 3 and "never-was" in unknown.stderr


def test_trace_of_a_call_that_came_by_grpc(os_up: WholeOS) -> None:
    sampling = execution_pb2.Sampling(seed=1, logit_bias={0: -100.0, 2: -100.0})  # never ends early
    request = execution_pb2.GenerateRequest(
        model="smollm2", prompt="Once", max_tokens=80, sampling=sampling
    )
    with grpc.insecure_channel(f"unix:{run_dir(os_up.state_dir) / 'kernel.sock'}") as channel:
        stub = execution_pb2_grpc.ExecutionStub(channel)
        list(stub.Generate(request, metadata=(("x-request-id", "by-grpc"),), timeout=120))
    value = os_up.json("trace", "by-grpc")
    what = {part["what"] for part in value["waterfall"]}
    assert "Execution/Generate smollm2" in what and "waiting: routing, queue, loading" in what
    assert any(word.endswith("further replies") for word in what)
    call = value["log"][0]["call"]
    assert os_up.json("trace", call)["waterfall"] and "█" in os_up.ok("trace", call)


def test_init_makes_a_server_that_passes_its_own_test(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools")
    system = WholeOS(tmp_path)
    place = tmp_path / "greeter"
    system.ok("init", "greeter", "--folder", str(place))
    code = [line for line in (place / "server.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 20
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    done = subprocess.run(run, cwd=place, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
    again = system.ctl("init", "greeter", "--folder", str(place))
    assert again.returncode == 4 and "is there already" in again.stderr
    for name in ("Greeter", "kernel", "../x", ""):
        assert system.ctl("init", name, "--folder", str(tmp_path / "no")).returncode == 2
    assert not (tmp_path / "no").exists()


def test_yaml_watch_and_completion(os_up: WholeOS) -> None:
    listed = yaml.safe_load(os_up.ok("-o", "yaml", "ps"))
    assert {"kernel", "storage"} <= {row["name"] for row in listed}
    screen = Screen(os_up, "kernel", "stats", "--watch", "0.2")
    try:
        for _ in range(3):
            screen.until("redispatched")
            screen.type("")
        screen.type("\x03")
        assert screen.end() == 0
    finally:
        screen.close()
    words = f"llmos-ctl --state-dir {os_up.state_dir} run smo"
    env = {
        **os.environ,
        "_LLMOS_CTL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": "4",
    }
    command = [sys.executable, "-c", "from llmos.clients.ctl.__main__ import main; main()"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["smollm2", "smollm2@1"]
    env["COMP_WORDS"] = words.replace(str(os_up.state_dir), str(os_up.state_dir / "none"))
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")  # where nothing runs, nothing is offered
