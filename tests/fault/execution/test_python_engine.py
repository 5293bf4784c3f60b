"""The python engine on a model that aborts, hoards, sleeps and talks nonsense."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from python_models import environment, unruly

from llmos.lib import errors
from llmos.servers.execution.engine import python
from llmos.servers.execution.engine.base import Engine, ModelSpec, Prediction

Make = Callable[..., Engine]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Load versions of the unruly model; all are closed afterwards."""
    made: list[Engine] = []

    def load(**options: Any) -> Engine:
        folder = unruly(tmp_path / f"m{len(made)}", **options)
        files = {p.name: p for p in sorted(folder.iterdir())}
        spec = ModelSpec(
            f"{folder.name}@1", "python", "predict", files, threads=1, state_dir=str(tmp_path / "s")
        )
        made.append(python.load(spec))
        return made[-1]

    yield load
    for engine in made:
        engine.close()


async def ask(engine: Engine, *numbers: float) -> tuple[np.ndarray, list[str]]:
    x = np.array([[n, 0, 0, 0] for n in numbers], np.float32)
    answer = await engine.predict(Prediction({"x": x}))
    return answer["y"], list(answer["who"])


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


async def test_it_answers_from_a_process_of_its_own(make: Make) -> None:
    engine = make()
    y, who = await ask(engine, 1, 2)
    np.testing.assert_array_equal(y, [[2, 1, 1, 1], [3, 1, 1, 1]])
    assert who[0].startswith("m0 ")
    assert [i.name for i in engine.info.inputs] == ["x"]


@pytest.mark.parametrize(
    ("what", "kind", "reason", "words"),
    [
        (101, errors.Internal, "MODEL_CRASHED", "SIGABRT"),
        (102, errors.ResourceExhausted, "MODEL_MEMORY", "256 MiB"),
        (103, errors.DeadlineExceeded, "MODEL_HUNG", "no CPU for 1.5 s"),
        (104, errors.Internal, "BAD_OUTPUT", "no answer"),
        (105, errors.InvalidArgument, "BAD_INPUT", "105 is refused"),
        (106, errors.Internal, "BAD_OUTPUT", "float64"),
        (107, errors.Internal, "MODEL_FAILED", "no such thing"),
        (108, errors.Internal, "MODEL_CRASHED", "status 7"),
    ],
)
async def test_what_a_model_does_is_told_and_the_next_call_is_answered(
    make: Make, what: int, kind: type[errors.LLMOSError], reason: str, words: str
) -> None:
    engine = make()
    with pytest.raises(kind, match=words) as caught:
        await ask(engine, what)
    assert caught.value.reason == reason
    y, _ = await ask(engine, 5)
    assert y[0, 0] == 6


async def test_one_that_computes_for_ever_is_ended_by_its_own_limit(make: Make) -> None:
    engine = make(stall_s=0.5, call_s=2)
    before = engine.work()
    with pytest.raises(errors.DeadlineExceeded, match="not done after 2 s"):
        await ask(engine, 109)
    assert engine.work() > before + 0.1, "it was seen to compute meanwhile"


async def test_neighbours_in_a_batch_are_answered(make: Make) -> None:
    engine = make(serving="[batching]\nmax = 8\ndelay_ms = 200\n")
    results = await asyncio.gather(
        *(ask(engine, n) for n in (1, 101, 2, 105, 3)), return_exceptions=True
    )
    assert isinstance(results[1], errors.Internal)
    assert isinstance(results[3], errors.InvalidArgument)
    assert [r[0][0, 0] for r in results[::2] if not isinstance(r, BaseException)] == [2, 3, 4]


async def test_environments_have_processes_of_their_own(make: Make, tmp_path: Path) -> None:
    """The model runs by the interpreter of its environment, in which LLM OS is not installed."""
    home = environment(tmp_path / "env")
    own, ours = make(environment=str(home)), make()
    (_, who), (_, other) = await ask(own, 1), await ask(ours, 1)
    assert who == [f"m0 {home}"]
    assert other[0] != f"m1 {home}"
    assert "ModuleNotFoundError" in run(str(home / "bin" / "python"), "-I", "-c", "import llmos")
    with pytest.raises(errors.Internal):
        await ask(own, 101)
    assert (await ask(ours, 1))[0][0, 0] == 2


async def test_a_killed_zygote_costs_no_call(make: Make, tmp_path: Path) -> None:
    engine = make()
    await ask(engine, 1)
    (path,) = (tmp_path / "s" / "run").glob("py-*.sock")
    # Not by p.cmdline(): that raises for anybody's process that ends meanwhile.
    (zygote, *_) = [
        p for p in psutil.process_iter(["cmdline"]) if str(path) in (p.info["cmdline"] or ())
    ]
    zygote.kill()
    assert (await ask(engine, 1))[0][0, 0] == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("unruly:Unruly", "unruly:Missing"), "Missing"),
        (("unruly:Unruly", "other:Unruly"), "other.py"),
        (("memory_mb = 256", "memory_mb = -1"), "memory_mb"),
        (("memory_mb = 256", "memory = 1"), "memory"),
        (('dtype = "float32"', 'dtype = "float33"'), "dtype"),
        (('environment = ""', 'environment = "absent"'), "absent"),
        (("version = 1", "version = ["), "TOML"),
    ],
)
def test_a_bad_declaration_is_named(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    folder = unruly(tmp_path / "m")
    declared = folder / "python.toml"
    declared.write_text(declared.read_text().replace(*change))
    files = {p.name: p for p in sorted(folder.iterdir())}
    spec = ModelSpec("m@1", "python", "predict", files, threads=1, state_dir=str(tmp_path / "s"))
    with pytest.raises((errors.Unavailable, errors.FailedPrecondition), match=words):
        python.load(spec)
