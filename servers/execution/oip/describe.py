"""A loaded model as the protocol describes it: tensors, configuration, statistics."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.api.inference import open_inference_pb2 as pb
from llmos.servers.execution.engine.base import EngineInfo, TensorSpec
from llmos.servers.execution.engine.serving.statistics import Duration, Statistics
from llmos.servers.execution.oip import tensors

PLATFORMS = {"onnx": "onnxruntime_onnx", "torch": "pytorch", "module": "pytorch_libtorch"}
TEXT_INPUT = TensorSpec("text_input", "object", (1,))
TEXT_OUTPUT = TensorSpec("text_output", "object", (1,))


def inputs_of(info: EngineInfo) -> Sequence[TensorSpec]:
    """Return what a model takes over this protocol."""
    return [TEXT_INPUT] if info.task == "generate" else info.inputs


def outputs_of(info: EngineInfo) -> Sequence[TensorSpec]:
    """Return what a model gives over this protocol."""
    return [TEXT_OUTPUT] if info.task == "generate" else info.outputs


def metadata(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    """Return one tensor; one that nothing is known about has no datatype."""
    return pb.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=tensors.NAMES.get(spec.dtype, ""), shape=spec.shape
    )


def config(name: str, info: EngineInfo, main: str) -> pb.ModelConfig:
    """Return how a model is run; main: name of its main file."""
    serving = info.serving
    batching = serving.batching if serving is not None else None
    found = pb.ModelConfig(
        name=name,
        platform=PLATFORMS.get(info.engine, info.engine),
        backend=info.engine,
        default_model_filename=main,
        max_batch_size=batching.max if batching is not None else 0,
    )
    skip = 1 if batching is not None else 0
    for spec in inputs_of(info):
        found.input.add(name=spec.name, data_type=_type(spec.dtype), dims=spec.shape[skip:])
    for spec in outputs_of(info):
        found.output.add(name=spec.name, data_type=_type(spec.dtype), dims=spec.shape[skip:])
    found.model_transaction_policy.decoupled = info.task == "generate" or bool(
        serving is not None and serving.stream is not None
    )
    found.response_cache.enable = serving is not None and serving.cache is not None
    if serving is not None and serving.sequence is not None:
        sequences = found.sequence_batching
        sequences.max_sequence_idle_microseconds = int(serving.sequence.idle_s * 1e6)
        for state in serving.sequence.state:
            sequences.state.add(
                input_name=state.input,
                output_name=state.output,
                data_type=_type(state.dtype),
                dims=state.shape,
            )
    elif batching is not None:
        found.dynamic_batching.preferred_batch_size.extend(batching.preferred)
        found.dynamic_batching.max_queue_delay_microseconds = int(batching.delay_ms * 1e3)
    return found


def statistics(name: str, version: str, found: Statistics | None) -> pb.ModelStatistics:
    """Return what a model has done; nothing for an engine that does not count."""
    answer = pb.ModelStatistics(name=name, version=version)
    if found is None:
        return answer
    answer.last_inference = found.last_ms
    answer.inference_count = found.inferences
    answer.execution_count = found.executions
    for one, duration in found.durations.items():
        _set(getattr(answer.inference_stats, one), duration)
    for size, times in sorted(found.batches.items()):
        batch = answer.batch_stats.add(batch_size=size)
        _set(batch.compute_input, times.compute_input)
        _set(batch.compute_infer, times.compute_infer)
        _set(batch.compute_output, times.compute_output)
    return answer


def _set(message: pb.StatisticDuration, duration: Duration) -> None:
    message.count, message.ns = duration.count, duration.ns


def _type(dtype: str) -> pb.DataType.ValueType:
    datatype = tensors.NAMES.get(dtype, "INVALID")
    return pb.DataType.Value(f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}")
