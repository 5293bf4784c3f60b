"""Export, prune and quantise: the real work on a small real encoder, against a real storage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from job_world import World, world
from tiny_text import tiny_bert

from llmos.api.optimizer.v1 import compress_pb2 as pb
from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.optimizer.v1.measure_pb2 import Gate
from llmos.api.storage.v1 import registry_pb2
from llmos.lib.errors import FailedPrecondition, InvalidArgument, LLMOSError

pytestmark = pytest.mark.filterwarnings("ignore")  # of exporters and quantisers about themselves
DATA = pb.Data(rows=24)


@pytest.fixture
async def models(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as found:
        await found.import_model(tiny_bert(tmp_path / "m"), "m")
        yield found


def export(**settings: Any) -> jobs_pb2.JobSpec:
    return jobs_pb2.JobSpec(export=pb.Export(**{"model": "m@1", "data": DATA, **settings}))


def prune(**settings: Any) -> jobs_pb2.JobSpec:
    return jobs_pb2.JobSpec(prune=pb.Prune(**{"model": "m@1", "data": DATA, **settings}))


def quantise(**settings: Any) -> jobs_pb2.JobSpec:
    return jobs_pb2.JobSpec(quantise=pb.Quantise(**{"model": "m", "data": DATA, **settings}))


@pytest.mark.parametrize(
    ("format", "stored", "label"),
    [
        (pb.EXPORT_FORMAT_TORCH_EXPORT, registry_pb2.FORMAT_TORCH_EXPORT, "torch-export"),
        (pb.EXPORT_FORMAT_TORCHSCRIPT, registry_pb2.FORMAT_TORCHSCRIPT, "torchscript"),
    ],
)
async def test_exports_agree_with_their_source(
    models: World, format: Any, stored: Any, label: str
) -> None:
    done = await models.run(export(format=format))
    found = await models.version(done.results[0])
    assert (found.format, list(found.lineage.parents)) == (stored, ["m@1"])
    assert found.lineage.step == f"export-{label}" and "tokenizer.json" in {
        f.name for f in found.files
    }
    assert done.figures(label)["relative_error"] < 1e-5
    assert {m.name for m in found.metrics} >= {"relative_error", "cosine_min", "size"}


async def test_an_export_that_does_not_agree_is_not_registered(models: World) -> None:
    spec = export(format=pb.EXPORT_FORMAT_TORCHSCRIPT, gates=[Gate(measure="latency_one", most=0)])
    with pytest.raises(FailedPrecondition) as caught:
        await models.run(spec)
    assert caught.value.reason == "TOO_FAR" and "latency_one is" in caught.value.message
    with pytest.raises(Exception, match="version"):
        await models.version("m@2")


async def test_structured_pruning_makes_layers_smaller(models: World) -> None:
    done = await models.run(
        prune(method=pb.PRUNE_METHOD_STRUCTURED, heads=0.5, channels=0.5, recovery_steps=4)
    )
    found = await models.version(done.results[0])
    figures = done.figures("pruned-structured")
    assert figures["parameters_removed"] > 0.25 and figures["zeros"] < 0.2
    assert found.size_bytes < (await models.version("m@1")).size_bytes
    again = await models.run(
        prune(model=done.results[0], method=pb.PRUNE_METHOD_STRUCTURED, channels=0.5)
    )
    assert again.figures("pruned-structured")["parameters"] < figures["parameters"]
    exported = await models.run(export(model=done.results[0], format=pb.EXPORT_FORMAT_ONNX))
    assert exported.figures("onnx")["relative_error"] < 1e-4
    for method, far in (
        (pb.QUANTISE_METHOD_ONNX_STATIC_INT8, 0.2),
        (pb.QUANTISE_METHOD_ONNX_INT4, 0.3),
    ):
        small = await models.run(quantise(model=exported.results[0], method=method))
        (label,) = set(small.comparisons) - {"original"}
        assert 0 < small.figures(label)["relative_error"] < far
    plain = await models.run(quantise(model=exported.results[0]))
    most = 0.7 * plain.figures("int8-dynamic")["relative_error"]  # more than it holds by itself
    gate = Gate(measure="relative_error", most=most)
    careful = await models.run(
        quantise(model=exported.results[0], gates=[gate], exclude_up_to=0.9, report_layers=True)
    )
    layers = careful.comparisons["int8-dynamic"].layers
    assert any(layer.excluded for layer in layers) and not all(e.excluded for e in layers)
    assert [e.error for e in layers] == sorted((e.error for e in layers), reverse=True)
    assert careful.figures("int8-dynamic")["relative_error"] <= most


@pytest.mark.parametrize(
    ("method", "amount", "zeros"),
    [(pb.PRUNE_METHOD_MAGNITUDE, 0.8, 0.8), (pb.PRUNE_METHOD_TWO_OF_FOUR, 0, 0.5)],
)
async def test_zeros_stay_zero_through_recovery(
    models: World, method: Any, amount: float, zeros: float
) -> None:
    from safetensors.numpy import load_file

    done = await models.run(prune(method=method, amount=amount, recovery_steps=3))
    (file,) = [f for f in (await models.version(done.results[0])).files if "model" in f.name][:1]
    weights = load_file(file.path)
    linear = [w for n, w in weights.items() if w.ndim == 2 and "embeddings" not in n]
    share = sum((w == 0).sum() for w in linear) / sum(w.size for w in linear)
    assert abs(share - zeros) < 0.02
    if method == pb.PRUNE_METHOD_TWO_OF_FOUR:
        assert all(((w.reshape(-1, 4) == 0).sum(1) >= 2).all() for w in linear)


async def test_torchao(models: World) -> None:
    for method, label in (
        (pb.QUANTISE_METHOD_TORCHAO_INT8, "torchao-int8"),
        (pb.QUANTISE_METHOD_TORCHAO_INT4, "torchao-int4"),
    ):
        done = await models.run(quantise(model="m@1", method=method))
        assert 0 < done.figures(label)["relative_error"] < 0.2
        found = await models.version(done.results[0])
        assert found.format == registry_pb2.FORMAT_TORCH_EXPORT


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        (export(model="a b"), InvalidArgument, "export.model is 'a b'"),
        (export(data=pb.Data(split="x")), InvalidArgument, "export.data.split is set but"),
        (export(data=pb.Data(rows=1 << 31)), InvalidArgument, "export.data.rows is"),
        (export(gates=[Gate(most=1)]), InvalidArgument, "gate without `measure`"),
        (export(gates=[Gate(measure="size")]), InvalidArgument, "asks nothing"),
        (export(format=pb.EXPORT_FORMAT_SAFETENSORS), FailedPrecondition, "takes gguf"),
        (prune(amount=1.5), InvalidArgument, "prune.amount is 1.5"),
        (prune(heads=0.5), InvalidArgument, "belong to the method STRUCTURED"),
        (prune(name="a/b"), InvalidArgument, "prune.name is 'a/b'"),
        (quantise(exclude_up_to=2), InvalidArgument, "quantise.exclude_up_to is 2"),
        (quantise(), FailedPrecondition, "takes onnx; export it first"),
        (
            quantise(method=pb.QUANTISE_METHOD_TORCHAO_INT8, exclude=["nothing"]),
            InvalidArgument,
            "names 'nothing', which is no layer",
        ),
    ],
)
async def test_bad_specs(
    models: World, spec: jobs_pb2.JobSpec, error: type[LLMOSError], says: str
) -> None:
    with pytest.raises(error) as caught:
        await models.run(spec)
    assert says in caught.value.message
