"""The same requests, valid and invalid, to LLM OS and to the real Triton: answers and codes agree.

Where they do not, on purpose, the case says so and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import real_triton
from execution_stack import Stack, stack
from model_files import tiny_onnx

from llmos.api.inference import open_inference_pb2 as pb
from llmos.api.inference import open_inference_pb2_grpc
from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc

pytestmark = pytest.mark.skipif(
    not real_triton.installed(), reason="no Triton: sh scripts/bench-peers.sh tritonserver"
)

MODEL = """
import numpy as np
import triton_python_backend_utils as utils

class TritonPythonModel:
    def execute(self, requests):
        weight = np.random.default_rng(0).standard_normal((32, 8), dtype=np.float32)
        answers = []
        for request in requests:
            x = utils.get_input_tensor_by_name(request, "x").as_numpy()
            answers.append(utils.InferenceResponse([utils.Tensor("y", x @ weight)]))
        return answers
"""
CONFIG = """
backend: "python"
max_batch_size: 16
dynamic_batching { }
input [ { name: "x" data_type: TYPE_FP32 dims: [ 32 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 8 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    folder = tmp_path_factory.mktemp("differential")
    (folder / "llmos").mkdir()
    with (
        real_triton.triton(folder, "tiny", MODEL, CONFIG) as theirs,
        stack(folder / "llmos") as running,
    ):
        with (
            grpc.insecure_channel(theirs) as channel,
            grpc.insecure_channel(running.processes.address("kernel")) as ours,
        ):
            import_tiny(running, ours)
            stubs = [open_inference_pb2_grpc.GRPCInferenceServiceStub(c) for c in (ours, channel)]
            yield stubs[0], stubs[1]


def import_tiny(running: Stack, channel: grpc.Channel) -> None:
    folder = running.state_dir / "import" / "tiny"
    folder.mkdir(parents=True)
    tiny_onnx(folder / "model.onnx")
    (folder / "serving.toml").write_text("[batching]\nmax = 16\n")
    request = registry_pb2.ImportModelRequest(source=str(folder), name="tiny")
    list(registry_pb2_grpc.RegistryStub(channel).ImportModel(request, timeout=60))


def infer(rows: int = 1, **change: Any) -> pb.ModelInferRequest:
    x = np.random.default_rng(rows).standard_normal((rows, 32)).astype(np.float32)
    about: dict[str, Any] = {"model": "tiny", "version": "", "raw": x.tobytes(), "name": "x"}
    about |= {"datatype": "FP32", "shape": [rows, 32], "outputs": []} | change
    request = pb.ModelInferRequest(
        model_name=about["model"], model_version=about["version"], id="an id"
    )
    if about["name"]:
        request.inputs.add(name=about["name"], datatype=about["datatype"], shape=about["shape"])
        request.raw_input_contents.append(about["raw"])
    for name in about["outputs"]:
        request.outputs.add(name=name)
    return request


def typed() -> pb.ModelInferRequest:
    request = infer()
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend([0.5] * 32)
    return request


def outcome(stub: Any, request: pb.ModelInferRequest) -> Any:
    """Return the status code, or all that a client sees of an answer."""
    try:
        answer = stub.ModelInfer(request, timeout=60)
    except grpc.RpcError as exc:
        return exc.code()
    outputs = [(o.name, o.datatype, list(o.shape)) for o in answer.outputs]
    values = [np.frombuffer(r, np.float32) for r in answer.raw_output_contents]
    return answer.model_name, answer.model_version, answer.id, outputs, np.concatenate(values)


VALID: dict[str, Callable[[], pb.ModelInferRequest]] = {
    "one row": infer,
    "a batch": lambda: infer(5),
    "as many as may be": lambda: infer(16),
    "typed contents": typed,
    "an output named": lambda: infer(2, outputs=["y"]),
    "a version named": lambda: infer(version="1"),
}
INVALID: dict[str, Callable[[], pb.ModelInferRequest]] = {
    "no such model": lambda: infer(model="nope"),
    "no such version": lambda: infer(version="9"),
    "no input": lambda: infer(name=""),
    "an input that is not there": lambda: infer(name="q"),
    "another datatype": lambda: infer(datatype="FP64", raw=b"x" * 256),
    "another shape": lambda: infer(shape=[1, 31], raw=b"x" * 124),
    "another rank": lambda: infer(shape=[32]),
    "too many bytes": lambda: infer(raw=b"x" * 132),
    "too few bytes": lambda: infer(raw=b"x" * 64),
    "too large a batch": lambda: infer(17),
    "an output that is not there": lambda: infer(outputs=["q"]),
    "a size below 0": lambda: infer(shape=[-1, 32]),
    "no datatype": lambda: infer(datatype=""),
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("case", VALID)
def test_answers_agree(both: tuple[Any, Any], case: str) -> None:
    ours, theirs = (outcome(stub, VALID[case]()) for stub in both)
    assert not isinstance(ours, grpc.StatusCode), ours
    assert not isinstance(theirs, grpc.StatusCode), theirs
    assert ours[:4] == theirs[:4]
    np.testing.assert_allclose(ours[4], theirs[4], atol=1e-4)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("case", INVALID)
def test_codes_agree(both: tuple[Any, Any], case: str) -> None:
    ours, theirs = (outcome(stub, INVALID[case]()) for stub in both)
    assert isinstance(ours, grpc.StatusCode) and isinstance(theirs, grpc.StatusCode)
    assert ours == theirs


def settings(stub: Any, **given: Any) -> Any:
    """Return the status code, or the settings that both have: not of the file and its format."""
    request = pb.LogSettingsRequest()
    for name, value in given.items():
        kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
        setattr(request.settings[name], kind, value)
    try:
        answer = stub.LogSettings(request, timeout=60).settings
    except grpc.RpcError as exc:
        return exc.code()
    return {n: answer[n] for n in answer if n not in ("log_file", "log_format")}


@pytest.mark.timeout(180)
def test_settings_of_logs_agree(both: tuple[Any, Any]) -> None:
    for given in (
        {},
        {"log_info": False},
        {"log_warning": False, "log_error": False},
        {"log_verbose_level": 1},
        {"log_format": "ISO8601"},
        {"log_format": "nonsense"},
        {"log_info": "yes"},
        {"log_info": 1},
        {"log_verbose_level": True},
        {"log_file": "/tmp/elsewhere"},
        {"log_verbose_level": 0, "log_info": True, "log_warning": True, "log_error": True},
    ):
        ours, theirs = (settings(stub, **given) for stub in both)
        assert ours == theirs, given
    # On purpose: what is not known is refused; Triton says OK and does nothing. And there is one
    # trace for the whole system, which this server does not own.
    assert settings(both[0], nope=True) is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as caught:
        both[0].TraceSetting(pb.TraceSettingRequest(), timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.timeout(180)
def test_descriptions_agree(both: tuple[Any, Any]) -> None:
    ours, theirs = (s.ModelMetadata(pb.ModelMetadataRequest(name="tiny"), timeout=60) for s in both)
    assert list(ours.versions) == list(theirs.versions) == ["1"]
    assert ours.inputs == theirs.inputs and ours.outputs == theirs.outputs
    configs = [s.ModelConfig(pb.ModelConfigRequest(name="tiny"), timeout=60).config for s in both]
    assert configs[0].max_batch_size == configs[1].max_batch_size == 16
    assert configs[0].input == configs[1].input
    assert [(o.name, o.data_type, o.dims) for o in configs[0].output] == [
        (o.name, o.data_type, o.dims) for o in configs[1].output
    ]
    for stub in both:
        stub.ModelInfer(infer(3), timeout=60)
    stats = [
        s.ModelStatistics(pb.ModelStatisticsRequest(name="tiny"), timeout=60).model_stats[0]
        for s in both
    ]
    assert stats[0].inference_stats.success.count >= 1
    assert stats[1].inference_stats.success.count >= 1
    listed = [
        set(s.ServerMetadata(pb.ServerMetadataRequest(), timeout=60).extensions) for s in both
    ]
    assert listed[0] <= listed[1]
    codes = []
    for stub in both:
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelMetadata(pb.ModelMetadataRequest(name="nope"), timeout=60)
        codes.append(caught.value.code())
    assert codes[0] == codes[1] == grpc.StatusCode.NOT_FOUND
