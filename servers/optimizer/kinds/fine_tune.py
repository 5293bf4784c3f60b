"""The kind fine_tune as the server knows it."""

from __future__ import annotations

from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.servers.optimizer.kinds import training
from llmos.servers.optimizer.kinds.base import Kind, Needs, bad, check_name, check_range, check_ref
from llmos.servers.optimizer.seams import Source


def _check(spec: pb.FineTune) -> Needs:
    check_ref("fine_tune.model", spec.model)
    check_name("fine_tune.name", spec.name)
    training.check_data("fine_tune.data", spec.data)
    if spec.data.tokenizer or spec.data.vocabulary:
        raise bad("fine_tune.data.tokenizer is the source's own; leave it and vocabulary out.")
    if spec.HasField("lora"):
        check_range("fine_tune.lora.dropout", spec.lora.dropout, 0, 0.9)
        check_range("fine_tune.lora.alpha", spec.lora.alpha, 0, 10_000)
        if spec.lora.rank > 4096:
            raise bad(f"fine_tune.lora.rank is {spec.lora.rank}; at most 4096 is allowed.")
    training.check_training("fine_tune.training", spec.training)
    training.check_distribution("fine_tune.distribution", spec.distribution, spec.training)
    if spec.HasField("privacy"):
        training.check_privacy("fine_tune.privacy", spec.privacy, spec.distribution)
    return Needs(models=[spec.model], datasets=[spec.data.dataset])


def _check_source(spec: pb.FineTune, source: Source) -> None:
    training.check_trainable("fine_tune.model", source)


KIND = Kind(
    check=_check,
    check_source=_check_source,
    runner="llmos.servers.optimizer.train.work:TrainWork",
    packages=(*training.PACKAGES, "gguf"),
    imports=training.imports_pretrained,
)
