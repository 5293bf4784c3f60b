"""docs/examples/fashion.md on few pictures: a network is trained, pruned, exported, made int8."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format
from optimizer_system import optimizer_system

from llmos.api.optimizer.v1 import jobs_pb2, train_pb2
from llmos.api.storage.v1 import data_pb2, data_pb2_grpc, registry_pb2
from llmos.lib.config import socket_address

PICTURES = Path("/usr/share/datasets/fashion-mnist")
SPEC = Path(__file__).parents[3] / "docs" / "examples" / "fashion.json"
pytestmark = pytest.mark.skipif(
    not PICTURES.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)


def small() -> jobs_pb2.JobSpec:
    """Return the example's pipeline with fewer rows and steps."""
    spec = json_format.ParseDict(json.loads(SPEC.read_text()), jobs_pb2.JobSpec())
    for step in spec.pipeline.steps:
        getattr(step, step.WhichOneof("kind") or "").data.rows = 400
    spec.pipeline.steps[0].prune.recovery_steps = 30
    spec.pipeline.promotion.gates[0].most_loss = 0.1  # on 400 pictures a point is 4 of them
    return spec


@pytest.mark.timeout(600)
def test_fashion_to_int8(tmp_path: Path) -> None:
    with optimizer_system(tmp_path) as system:
        with grpc.insecure_channel(socket_address(tmp_path, "storage")) as channel:
            stub = data_pb2_grpc.DatasetsStub(channel)
            request = data_pb2.ImportDatasetRequest(source=str(PICTURES), name="fashion")
            *_, last = stub.ImportDataset(request, timeout=170)
        assert {s.name: s.rows for s in last.dataset.splits} == {"train": 60000, "test": 10000}
        train = train_pb2.Train(
            name="clothes",
            data=train_pb2.TrainingData(dataset="fashion", rows=4000),
            cnn=train_pb2.Cnn(channels=[8, 16], hidden=32),
        )
        train.training.epochs = 2
        trained = system.watch(system.submit(jobs_pb2.JobSpec(train=train)).id)
        assert trained.state == jobs_pb2.JOB_STATE_SUCCEEDED, trained.error
        done = system.watch(system.submit(small()).id)
        assert done.state == jobs_pb2.JOB_STATE_SUCCEEDED, done.error
        first, last_one = (
            {m.name: m.value for m in c.measures}
            for c in done.comparisons
            if c.label in ("4 evaluate: original", "4 evaluate: version 2")
        )
        assert first["accuracy"] > 0.6 and last_one["accuracy"] > first["accuracy"] - 0.1
        assert last_one["size"] < first["size"] / 2
        with system.registry() as registry:
            lineage = registry.GetLineage(registry_pb2.GetLineageRequest(ref="clothes@int8"))
        assert [node.lineage.step for node in lineage.nodes][:3] == [
            "quantise-int8-static",
            "export-onnx",
            "prune-structured",
        ]
        assert "fashion@1" in lineage.nodes[-1].lineage.datasets
