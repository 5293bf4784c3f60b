"""The command line as a user sees it without a running LLM OS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from llmos.clients.ctl import run
from llmos.clients.ctl.__main__ import main
from llmos.clients.ctl.app import build

COMMANDS = [
    *([name] for name in "up down ps logs restart run chat embed demo top doctor bench".split()),
    *([name] for name in ("trace", "init")),
    *(["model", verb] for verb in "import ls show rm load unload tag lineage watch".split()),
    *(["model", "alias", verb] for verb in "set ls history rollback rm".split()),
    *(["model", "lease", verb] for verb in "take ls renew release".split()),
    *(["job", verb] for verb in ("ls", "watch", "cancel", "submit")),
    *([noun, verb] for noun in ("model", "dataset") for verb in ("list", "delete")),  # both words
    *(["dataset", verb] for verb in ("ls", "rm")),
    ["job", "submit", "export-onnx"],
    *(["kernel", verb] for verb in "ports services calls stats cancel drain".split()),
    *(["kernel", verb] for verb in "top tenants limits replay events publish".split()),
]


def ctl(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(words)
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    code, out, _ = ctl(capsys, *words, "--help")
    assert code == 0
    assert out.startswith("Usage: llmos-ctl " + " ".join(words))
    if words != ["job", "submit"]:
        assert "--state-dir" in out and "--output" in out


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['llmos-ctl', '--help']\n"
        "from llmos.clients.ctl.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'torch', 'numpy', 'psutil', 'asyncio', 'rich', 'pydantic'}\n"
        "assert not heavy & set(sys.modules)\n"
        "import time; assert time.process_time() < 3, 'of the processor; 0.25 s is usual'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "words", [["ps"], ["logs", "kernel"], ["model", "ls"], ["run", "m", "hi"], ["kernel", "stats"]]
)
def test_not_running_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str]
) -> None:
    state = tmp_path / "none"
    code, out, err = ctl(capsys, *words, "--state-dir", str(state))
    assert (code, out) == (8, "")
    assert err == (
        f"llmos-ctl: LLM OS is not running (state directory {state}): "
        "start it with `llmos-ctl up`.\n"
    )
    assert not state.exists()  # looking changes nothing


def test_options_go_before_or_after_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for words in (
        ["--state-dir", str(tmp_path), "-o", "json", "ps"],
        ["ps", "-o", "json", "--state-dir", str(tmp_path)],
        ["--output=json", "ps", "--state-dir", str(tmp_path)],
    ):
        code, _, err = ctl(capsys, *words)
        assert code == 8
        assert json.loads(err)["error"]["reason"] == "NOT_RUNNING"


def test_down_of_nothing_is_fine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = ctl(capsys, "down", "--state-dir", str(tmp_path))
    assert code == 0 and "nothing to stop" in out


def test_wrong_words_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["nope"], ["run", "m"], ["run", "m", "p", "--seed", "-1"], ["ps", "-o", "xml"]):
        code, out, err = ctl(capsys, *words)
        assert code == 2 and not out and "Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["run", "m", "p", "--max-tokens", str(2**32)],
        ["run", "m", "p", "--top-k", str(2**32)],
        ["chat", "m", "--seed", str(2**64)],
        ["logs", "kernel", "-n", str(2**32)],
        ["kernel", "drain", str(2**64)],
    ],
    ids=" ".join,
)
def test_a_number_that_no_message_holds(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    code, out, err = ctl(capsys, *words)
    assert (code, out) == (2, "") and "less than or equal" in err


def test_address_that_nobody_serves(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/none.sock"
    code, _, err = ctl(capsys, "kernel", "stats", "--address", address, "--timeout", "0.5")
    assert code == 8
    assert err.startswith(f"llmos-ctl: Nothing answers at {address} within 0.5 s; check --address")


def test_a_state_directory_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "llmos.clients.ctl", "up", "--state-dir", str(file / "state")],
        capture_output=True,
        text=True,
        env=os.environ,
        timeout=60,
    )
    assert done.returncode == 7 and not done.stdout
    assert done.stderr.startswith(f"llmos-ctl: Cannot write the state directory {file}/state (")
    assert len(done.stderr.splitlines()) == 1


def test_request_has_only_what_was_given() -> None:
    request = run.build("m", [("system", "s"), ("user", "u")], run.Settings(temperature=0.0))
    assert [(m.role, m.content) for m in request.chat.messages] == [("system", "s"), ("user", "u")]
    assert request.sampling.HasField("temperature") and request.sampling.temperature == 0
    assert not request.sampling.HasField("seed") and request.max_tokens == 0
    raw = run.build("m", "text", run.Settings(seed=3, stop=("a", "b"), max_tokens=5))
    assert raw.WhichOneof("input") == "prompt" and list(raw.stop) == ["a", "b"]
    assert (raw.sampling.seed, raw.max_tokens) == (3, 5)


def test_every_list_can_be_watched() -> None:
    def lists(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        context = typer.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None, name
            if hasattr(command, "commands"):
                yield from lists(command, (*path, name))
            elif name in ("ls", "list", "ps"):
                yield (*path, name), command

    found = list(lists(typer.main.get_command(build()), ()))
    assert len(found) > 10
    for path, command in found:
        assert any("--watch" in parameter.opts for parameter in command.params), path


def test_a_wrong_job_is_said_in_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spec = tmp_path / "job.json"
    for text, said in (
        (
            '{"export_onnx": {"m": 1}}',
            'no field named "m" at "JobSpec.export_onnx"; there are model',
        ),
        ('{"export_onnx": {"model": 1}}', "Failed to parse model field"),
        ("{", "is not as its name says"),
    ):
        spec.write_text(text)
        code, out, err = ctl(capsys, "job", "submit", "file", str(spec))
        assert code == 2 and not out and said in err
        assert err.count("\n") == 1 and err.endswith(".\n") and not err.endswith("..\n")
