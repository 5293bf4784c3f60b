"""The kind distil as the server knows it."""

from __future__ import annotations

from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.servers.optimizer.kinds import training
from llmos.servers.optimizer.kinds.base import Kind, Needs, bad, check_name, check_range, check_ref
from llmos.servers.optimizer.seams import Source


def _check(spec: pb.Distil) -> Needs:
    check_ref("distil.teacher", spec.teacher)
    check_name("distil.name", spec.name)
    if bool(spec.student) == bool(spec.layers):
        raise bad("distil needs either student, a registered model, or layers to cut the teacher.")
    if spec.student:
        check_ref("distil.student", spec.student)
    if spec.layers > 256:
        raise bad(f"distil.layers is {spec.layers}; at most 256 is allowed.")
    training.check_data("distil.data", spec.data)
    if spec.data.tokenizer or spec.data.vocabulary:
        raise bad("distil.data.tokenizer is the teacher's own; leave it and vocabulary out.")
    check_range("distil.temperature", spec.temperature, 0, 100)
    check_range("distil.soft_weight", spec.soft_weight, 0, 1)
    check_range("distil.hidden_weight", spec.hidden_weight, 0, 1000)
    training.check_training("distil.training", spec.training)
    training.check_distribution("distil.distribution", spec.distribution, spec.training)
    models = [spec.teacher, *([spec.student] if spec.student else [])]
    return Needs(models=models, datasets=[spec.data.dataset])


def _check_source(spec: pb.Distil, source: Source) -> None:
    training.check_trainable("distil", source)


KIND = Kind(
    check=_check,
    check_source=_check_source,
    runner="llmos.servers.optimizer.train.work:TrainWork",
    packages=(*training.PACKAGES, "gguf"),
    imports=training.imports_pretrained,
)
