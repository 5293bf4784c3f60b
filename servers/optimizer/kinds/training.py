"""Checks of the messages that all kinds that train share; see train.proto."""

from __future__ import annotations

from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.lib.errors import FailedPrecondition
from llmos.servers.optimizer.kinds.base import bad, check_range, check_ref
from llmos.servers.optimizer.seams import Source

PACKAGES = ("numpy", "pyarrow", "safetensors", "tokenizers", "torch", "transformers")
PRIVATE_PACKAGES = ("dp_accounting", "opacus")
MAX_PROCESSES = 64
_MAX_STEPS = 1_000_000_000


def imports(spec: pb.Train | pb.FineTune | pb.Distil) -> list[str]:
    """Return the modules that a training imports when it needs them."""
    private = not isinstance(spec, pb.Distil) and spec.HasField("privacy")
    return ["torch._dynamo", *(["llmos.servers.optimizer.train.private"] if private else [])]


def imports_pretrained(spec: pb.FineTune | pb.Distil) -> list[str]:
    """Return the same for what begins with a model."""
    own = "llmos.servers.optimizer.train"
    return [*imports(spec), f"{own}.pretrained", f"{own}.lora", "transformers.modeling_layers"]


def check_data(field: str, data: pb.TrainingData) -> None:
    """Raise BAD_SPEC naming the field."""
    check_ref(f"{field}.dataset", data.dataset)
    if data.tokenizer:
        check_ref(f"{field}.tokenizer", data.tokenizer)
    if data.tokens and not 8 <= data.tokens <= 131_072:
        raise bad(f"{field}.tokens is {data.tokens}; it must be 8 to 131072.")
    if data.vocabulary and not 300 <= data.vocabulary <= 1_000_000:
        raise bad(f"{field}.vocabulary is {data.vocabulary}; it must be 300 to 1000000.")
    if data.target and data.target in data.features:
        raise bad(f"{field}.target {data.target[:60]!r} is one of {field}.features, too.")


def check_training(field: str, training: pb.Training) -> None:
    """Raise BAD_SPEC naming the field."""
    for name, most in {
        **{"learning_rate": 1000.0, "momentum": 0.9999, "l1": 1000.0, "l2": 1000.0},
        **{"warmup": 1.0, "max_gradient_norm": 1e9, "epochs": 1e6},
    }.items():
        check_range(f"{field}.{name}", getattr(training, name), 0, most)
    for name, numbers in {
        "batch": 1_000_000,
        "accumulate": 100_000,
        "steps": _MAX_STEPS,
        "seed": (1 << 63) - 1,
    }.items():
        if getattr(training, name) > numbers:
            raise bad(f"{field}.{name} is {getattr(training, name)}; at most {numbers} is allowed.")
    if training.momentum and training.method != pb.METHOD_SGD:
        raise bad(f"{field}.momentum is of METHOD_SGD; Adam and AdamW have their own.")
    known = (("method", pb.Method), ("schedule", pb.Schedule), ("precision", pb.Precision))
    for name, kinds in known:
        if getattr(training, name) not in kinds.values():
            raise bad(f"{field}.{name} is {getattr(training, name)}, which this version lacks.")
    if training.accumulate > 1 and training.batch and training.accumulate > training.batch:
        raise bad(f"{field}.accumulate is more than the {training.batch} rows of a batch.")


def check_distribution(field: str, spec: pb.Distribution, training: pb.Training) -> None:
    """Raise BAD_SPEC naming the field."""
    if spec.processes > MAX_PROCESSES:
        raise bad(f"{field}.processes is {spec.processes}; at most {MAX_PROCESSES} is allowed.")
    if spec.processes > (training.batch or 32):
        raise bad(f"{field}.processes is more than the rows of training.batch.")
    if spec.shard and spec.processes < 2:
        raise bad(f"{field}.shard needs {field}.processes of at least 2.")


def check_privacy(field: str, spec: pb.Privacy, distribution: pb.Distribution) -> None:
    """Raise BAD_SPEC naming the field, MISSING_EXTRA."""
    if not spec.epsilon > 0:
        raise bad(f"{field}.epsilon is {spec.epsilon:g}; it must be more than 0.")
    check_range(f"{field}.epsilon", spec.epsilon, 0.01, 1000)
    check_range(f"{field}.delta", spec.delta, 0, 0.1)
    check_range(f"{field}.max_gradient_norm", spec.max_gradient_norm, 0, 1e6)
    if distribution.processes > 1:
        raise bad("distribution.processes must be 1 with privacy: its noise is of one process.")


def check_trainable(field: str, source: Source) -> None:
    """Raise WRONG_FORMAT when a version cannot be trained further."""
    if source.format not in ("safetensors", "gguf"):
        raise FailedPrecondition(
            "WRONG_FORMAT",
            f"{field} {source.ref} is {source.format or 'of an unknown format'}; training goes on "
            "from safetensors, or from GGUF language models.",
        )
