"""The module engine on TorchScript and torch.export files."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmos.lib.errors import FailedPrecondition, InvalidArgument, LLMOSError, Unavailable
from llmos.servers.execution.engine import module as engine_module
from llmos.servers.execution.engine import select
from llmos.servers.execution.engine.base import Engine, ModelSpec, Prediction, SequenceCall

DECLARED = """
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1, 4]
[[inputs]]
name = "scale"
dtype = "float32"
shape = [-1, 1]
[[outputs]]
name = "y"
dtype = "float32"
shape = [-1, 3]
[[outputs]]
name = "total"
dtype = "float32"
shape = [-1]
"""


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.linear(x) * scale, x.sum(1)


class Counter(torch.nn.Module):
    """Keeps its state outside of itself, as a model that is served must."""

    def forward(self, x: torch.Tensor, sum: torch.Tensor, by: int) -> dict[str, torch.Tensor]:
        total = sum + x * by
        return {"seen": total, "sum_next": total}


@pytest.fixture(scope="module")
def net() -> Any:
    return Net().eval()


@pytest.fixture(scope="module")
def script(net: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return script_of(net, tmp_path_factory.mktemp("script"))


@pytest.fixture(scope="module")
def program(net: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program_of(net, tmp_path_factory.mktemp("program"))


def script_of(net: Any, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit tells that it is old
        torch.jit.script(net).save(str(folder / "model.pt"))
    return folder / "model.pt"


def program_of(net: Any, folder: Path) -> Path:
    rows = torch.export.Dim("rows")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.export.export(
            net, (torch.ones(2, 4), torch.ones(2, 1)), dynamic_shapes=({0: rows}, {0: rows})
        )
        torch.export.save(made, folder / "model.pt2")
    return folder / "model.pt2"


def load(path: Path, toml: str = "", format: str = "") -> Engine:
    files = {path.name: path}
    if toml:
        files["serving.toml"] = path.parent / "serving.toml"
        files["serving.toml"].write_text(toml)
    format = format or ("torch_export" if path.suffix == ".pt2" else "torchscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec = ModelSpec("m@1", format, "predict", files, threads=1)
        assert select.engine_for(spec.format, spec.task) == "module"
        assert engine_module.estimate_bytes(spec) > path.stat().st_size
        return engine_module.load(spec)


def given(rows: int = 2) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    return {
        "x": random.standard_normal((rows, 4), np.float32),
        "scale": random.standard_normal((rows, 1), np.float32),
    }


def by_hand(net: Any, tensors: dict[str, Any]) -> list[Any]:
    with torch.inference_mode():
        return [t.numpy() for t in net(*(torch.from_numpy(a) for a in tensors.values()))]


async def test_script_computes_what_the_module_does(net: Any, script: Path) -> None:
    engine = load(script, DECLARED)
    assert next((s.name, s.dtype, list(s.shape)) for s in engine.info.inputs) == (
        "x",
        "float32",
        [-1, 4],
    )
    answer = await engine.infer(given(), [])
    for name, wanted in zip(("y", "total"), by_hand(net, given()), strict=True):
        np.testing.assert_allclose(answer[name], wanted, atol=1e-6)
    assert list(await engine.infer(given(), ["total"])) == ["total"]
    assert engine.info.engine == "module" and engine.work() > 0
    engine.close()


async def test_script_without_a_declaration_lets_tensors_through(net: Any, script: Path) -> None:
    (script.parent / "serving.toml").unlink(missing_ok=True)
    engine = load(script)
    answer = await engine.infer(given(), [])
    np.testing.assert_allclose(answer["output_0"], by_hand(net, given())[0], atol=1e-6)
    with pytest.raises(InvalidArgument) as caught:  # the module's own words
        await engine.infer(given() | {"x": np.ones((2, 5), np.float32)}, [])
    assert caught.value.reason == "BAD_TENSOR" and "failed on these values" in str(caught.value)
    engine.close()


async def test_program_says_what_it_takes_and_is_batched(net: Any, program: Path) -> None:
    engine = load(program, "[batching]\nmax = 16\ndelay_ms = 60\n")
    assert [(s.name, list(s.shape)) for s in engine.info.inputs] == [
        ("x", [-1, 4]),
        ("scale", [-1, 1]),
    ]
    answers = await asyncio.gather(*(engine.infer(given(1 + i % 3), []) for i in range(12)))
    first = engine.info.outputs[0].name
    for i, answer in enumerate(answers):
        np.testing.assert_allclose(answer[first], by_hand(net, given(1 + i % 3))[0], atol=1e-6)
    assert engine.statistics is not None and max(engine.statistics.batches) > 3
    engine.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": np.ones((2, 5), np.float32)}, r"shape \[2, 5\]; expected"),
        ({"x": np.ones((2, 4), np.float64)}, "float64; expected float32"),
        ({"x": np.ones((3, 4), np.float32)}, "dimension"),
        ({"q": np.ones(1, np.float32)}, "takes no tensor 'q'"),
    ],
)
async def test_bad_tensors_are_named(program: Path, change: dict[str, Any], says: str) -> None:
    (program.parent / "serving.toml").unlink(missing_ok=True)
    engine = load(program)
    with pytest.raises(InvalidArgument, match=says) as caught:
        await engine.infer(given() | change, [])
    assert caught.value.reason == "BAD_TENSOR"
    assert (await engine.infer(given(), []))["mul"].shape == (2, 3)  # it lives on
    engine.close()


async def test_numbers_and_state_are_declared(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Counter()).save(str(path))  # type: ignore[no-untyped-call]
    tensors = "".join(
        f'[[{side}]]\nname = "{name}"\ndtype = "float32"\nshape = [-1, 2]\n'
        for side, name in (
            ("inputs", "x"),
            ("inputs", "sum"),
            ("outputs", "seen"),
            ("outputs", "sum_next"),
        )
    )
    state = '[sequence]\n[[sequence.state]]\ninput = "sum"\noutput = "sum_next"\nshape = [2]\n'
    with pytest.raises(FailedPrecondition, match="'by'") as caught:
        load(path, tensors + state)
    assert caught.value.reason == "NO_ENGINE"
    engine = load(path, tensors + state + "[constants]\nby = 10\n")
    seen = []
    for step in range(3):
        call = SequenceCall(9, start=not step)
        piece = Prediction({"x": np.full((1, 2), step + 1, np.float32)}, sequence=call)
        seen.append((await engine.predict(piece))["seen"].tolist())
    assert seen == [[[10, 10]], [[30, 30]], [[60, 60]]]
    engine.close()


def test_what_is_no_module_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\x03\x04 not a module")
    for format in ("torchscript", "torch_export"):
        with pytest.raises(LLMOSError) as caught:
            load(path, format=format)
        assert isinstance(caught.value, Unavailable) and caught.value.reason == "LOAD_FAILED"
    with pytest.raises(FailedPrecondition) as caught:
        engine_module.check(ModelSpec("m@1", "gguf", "generate", {}))
    assert caught.value.reason == "NO_ENGINE"


@pytest.mark.parametrize("kind", ["torchscript", "torch-export"])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, kind: str) -> None:
    net = Net().eval()
    with torch.no_grad():
        net.linear.bias[0] = -torch.inf  # a mask may hold it
    for bad in (False, True):
        if bad:
            with torch.no_grad():
                net.linear.weight[1, 2] = torch.nan
        path = script_of(net, tmp_path) if kind == "torchscript" else program_of(net, tmp_path)
        if bad:
            with pytest.raises(Unavailable, match=r"\(NaN\), in 'linear.weight'") as caught:
                load(path)
            assert caught.value.reason == "LOAD_FAILED"
        else:
            load(path).close()
