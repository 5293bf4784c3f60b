"""The kind train as the server knows it."""

from __future__ import annotations

from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.servers.optimizer.kinds import training
from llmos.servers.optimizer.kinds.base import Kind, Needs, bad, check_name, check_range

_TEXT = ("encoder", "decoder", "encoder_decoder")
_MAX_SIZE = 65_536


def _check(spec: pb.Train) -> Needs:
    if not spec.name:
        raise bad("train.name is empty; name the model to register.")
    check_name("train.name", spec.name)
    network = spec.WhichOneof("network")
    if network is None:
        raise bad("train has no network; set linear, logistic, mlp, cnn or a Transformer.")
    training.check_data("train.data", spec.data)
    _check_network(f"train.{network}", network, spec)
    training.check_training("train.training", spec.training)
    training.check_distribution("train.distribution", spec.distribution, spec.training)
    if spec.HasField("privacy"):
        training.check_privacy("train.privacy", spec.privacy, spec.distribution)
    if spec.data.tokenizer and network not in _TEXT:
        raise bad("train.data.tokenizer is for Transformers; leave it out.")
    models = [spec.data.tokenizer] if spec.data.tokenizer else []
    return Needs(models=models, datasets=[spec.data.dataset])


def _check_network(field: str, network: str, spec: pb.Train) -> None:
    shape = getattr(spec, network)
    if network in ("mlp", "cnn", *_TEXT):
        check_range(f"{field}.dropout", shape.dropout, 0, 0.9)
    for name in {"mlp": ["hidden"], "cnn": ["channels"]}.get(network, []):
        sizes = getattr(shape, name)
        if len(sizes) > 64 or any(not 1 <= size <= _MAX_SIZE for size in sizes):
            raise bad(f"{field}.{name} must be at most 64 sizes of 1 to {_MAX_SIZE}.")
    if network in _TEXT:
        width, heads = shape.width or 128, shape.heads or 4
        if shape.layers > 256 or width > _MAX_SIZE:
            raise bad(f"{field} is too large: at most 256 layers of width {_MAX_SIZE}.")
        if width % heads or (width // heads) % 2:
            raise bad(f"{field}.width is {width}; it must be an even multiple of {heads} heads.")


KIND = Kind(
    check=_check,
    runner="llmos.servers.optimizer.train.work:TrainWork",
    packages=training.PACKAGES,
    imports=training.imports,
)
