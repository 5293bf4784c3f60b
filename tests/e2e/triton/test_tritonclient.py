"""tritonclient, unmodified, against a whole LLM OS: what ServerMetadata lists, it can do."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from execution_stack import Client, Stack, client, stack
from model_files import tiny_onnx

from llmos.api.execution.v1 import worker_pb2, worker_pb2_grpc
from llmos.lib.bufferkey import key_of
from llmos.lib.buffers import BufferClient

VAD = """
[constants]
sr = 16000
[sequence]
carry = { input = 64 }
[[sequence.state]]
input = "state"
output = "stateN"
shape = [2, 128]
axis = 1
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    flags = ("--shm-allow", "llmostest-*")
    with stack(tmp_path_factory.mktemp("triton"), execution=flags) as running:
        yield running


@pytest.fixture
async def llmos(running: Stack) -> AsyncIterator[Client]:
    async with client(running) as client_:
        if "tiny@1" not in await client_.models():
            folder = running.state_dir / "import"
            tiny = folder / "tiny"
            tiny.mkdir(parents=True)
            tiny_onnx(tiny / "model.onnx")
            (tiny / "labels.txt").write_text("".join(f"class {i}\n" for i in range(8)))
            (tiny / "serving.toml").write_text(
                "[batching]\nmax = 16\ndelay_ms = 20\npreferred = [8]\n[cache]\nmb = 1\n"
                '[[after]]\nstep = "labels"\ninput = "y"\nnames = "labels.txt"\n'
            )
            await client_.import_model(str(tiny), "tiny")
        yield client_


async def import_vad(llmos: Client, running: Stack, name: str, toml: str) -> None:
    if f"{name}@1" in await llmos.models():
        return
    try:
        package = importlib.metadata.distribution("silero-vad")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("silero-vad is not installed (models.txt)")
    folder = running.state_dir / "import" / name
    folder.mkdir(parents=True)
    source = Path(str(package.locate_file("silero_vad/data/silero_vad.onnx")))
    shutil.copy(source, folder / "model.onnx")
    (folder / "serving.toml").write_text(toml)
    await llmos.import_model(str(folder), name)


HEAD = """
import json, queue, sys
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException
client = triton.InferenceServerClient(sys.argv[1])
found = {}
def tensor(name, array, kind="FP32"):
    given = triton.InferInput(name, list(array.shape), kind)
    given.set_data_from_numpy(array)
    return given
def fails(call):
    try:
        call()
    except InferenceServerException as exc:
        return exc.status()
    return "OK"
"""


def run(running: Stack, script: str, *arguments: str) -> Any:
    """Run a script with tritonclient in a process of its own (its descriptors have our names)."""
    code = HEAD + script + "\njson.dump(found, sys.stdout)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    command += [running.processes.address("kernel"), *arguments]
    done = subprocess.run(command, capture_output=True, timeout=120, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


DESCRIBED = """
x = np.ones((2, 32), np.float32)
found["config"] = client.get_model_config("tiny", as_json=True)["config"]
found["not loaded"] = fails(lambda: client.get_inference_statistics("nope"))
for _ in range(3):
    client.infer("tiny", [tensor("x", x)], client_timeout=60)
statistics = client.get_inference_statistics("tiny", as_json=True)["model_stats"][0]
found["statistics"] = statistics
found["all"] = [m["name"] for m in client.get_inference_statistics(as_json=True)["model_stats"]]
wanted = triton.InferRequestedOutput("y", class_count=3)
answer = client.infer("tiny", [tensor("x", x)], outputs=[wanted], client_timeout=60)
found["classes"] = [[c.decode() for c in row] for row in answer.as_numpy("y").tolist()]
found["y"] = client.infer("tiny", [tensor("x", x)], client_timeout=60).as_numpy("y")[0].tolist()
found["extensions"] = client.get_server_metadata(as_json=True)["extensions"]
found["too many"] = fails(lambda: client.infer("tiny", [tensor("x", np.ones((17, 32), "f4"))]))
"""


@pytest.mark.timeout(150)
async def test_configuration_statistics_and_classification(running: Stack, llmos: Client) -> None:
    found = run(running, DESCRIBED)
    config = found["config"]
    assert (config["name"], config["max_batch_size"]) == ("tiny", 16)
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["32"]}]
    batching = config["dynamic_batching"]
    assert batching["preferred_batch_size"] == [8]
    assert int(batching["max_queue_delay_microseconds"]) == 20_000
    assert config["response_cache"] == {"enable": True} and config["backend"] == "onnx"
    statistics = found["statistics"]["inference_stats"]
    assert int(statistics["success"]["count"]) == 3
    assert int(statistics["cache_hit"]["count"]) == 2 and "tiny" in found["all"]
    assert found["not loaded"] == "StatusCode.NOT_FOUND"
    assert found["too many"] == "StatusCode.INVALID_ARGUMENT"
    best = np.argsort(-np.array(found["y"]))[:3]
    assert len(found["classes"]) == 2
    for text, index in zip(found["classes"][0], best, strict=True):
        score, number, label = text.split(":")
        assert (int(number), label) == (index, f"class {index}")
        assert float(score) == pytest.approx(found["y"][index], abs=1e-5)
    assert {"classification", "sequence", "statistics", "system_shared_memory"} <= set(
        found["extensions"]
    )
    assert "trace" not in found["extensions"] and "cuda_shared_memory" not in found["extensions"]


LOGGED = """
found["before"] = client.get_log_settings(as_json=True)["settings"]
after = client.update_log_settings({"log_info": False, "log_verbose_level": 1}, as_json=True)
found["after"] = after["settings"]
found["file"] = fails(lambda: client.update_log_settings({"log_file": "x"}))
found["trace"] = fails(client.get_trace_settings)
"""


@pytest.mark.timeout(150)
async def test_settings_of_logs_reach_all_workers(running: Stack, llmos: Client) -> None:
    await llmos.load("tiny")
    try:
        found = run(running, LOGGED)
        assert found["before"]["log_info"] == {"bool_param": True}
        assert found["after"]["log_info"] == {"bool_param": False}
        assert found["after"]["log_verbose_level"] == {"uint32_param": 1}
        assert found["file"] == found["trace"] == "StatusCode.UNIMPLEMENTED"
        control = worker_pb2_grpc.WorkerControlStub(llmos.channel)
        request = worker_pb2.DescribeWorkerRequest(ref="tiny@1")
        described = await control.DescribeWorker(request, timeout=10)
        assert described.worker.log_level == "debug,warning,error"
        logs = running.state_dir / "logs"
        forked = (logs / "zygote.log").read_text().count('"forked"')
        born = (logs / "worker+tiny@1.log").read_text().count('"born"')
        await llmos.unload("tiny")
        await llmos.load("tiny")  # nobody says so now
        assert (logs / "zygote.log").read_text().count('"forked"') == forked
        assert (logs / "worker+tiny@1.log").read_text().count('"born"') == born
    finally:
        run(running, 'client.update_log_settings({"log_info": True, "log_verbose_level": 0})')
    described = await control.DescribeWorker(request, timeout=10)
    assert described.worker.log_level == "info"


SHARED = """
key, out, size = sys.argv[2], sys.argv[3], int(sys.argv[4])
client.register_system_shared_memory("in", key, size)
client.register_system_shared_memory("out", out, size)
found["status"] = sorted(client.get_system_shared_memory_status(as_json=True)["regions"])
given = triton.InferInput("x", [4, 32], "FP32")
given.set_shared_memory("in", 512, offset=128)
wanted = triton.InferRequestedOutput("y")
wanted.set_shared_memory("out", 128)
answer = client.infer("tiny", [given], outputs=[wanted], client_timeout=60)
output = answer.get_output("y")
found["where"] = output.parameters["shared_memory_region"].string_param
found["inline"] = len(answer.get_response().raw_output_contents)
found["errors"] = []
for name, wrong in (("a", "/etc/passwd"), ("b", "/dev/shm/x"), ("c", key.replace(":", ":00", 1))):
    found["errors"].append(fails(lambda: client.register_system_shared_memory(name, wrong, 64)))
found["errors"].append(fails(lambda: client.register_system_shared_memory("in", out, size)))
found["errors"].append(fails(lambda: client.register_system_shared_memory("d", key, size + 1)))
given.set_shared_memory("nowhere", 512)
found["errors"].append(fails(lambda: client.infer("tiny", [given], client_timeout=60)))
given.set_shared_memory("in", size + 4)
found["errors"].append(fails(lambda: client.infer("tiny", [given], client_timeout=60)))
given.set_shared_memory("in", 512)
wanted.set_shared_memory("out", 8)
found["errors"].append(fails(lambda: client.infer("tiny", [given], outputs=[wanted])))
client.unregister_system_shared_memory("in")
found["left"] = sorted(client.get_system_shared_memory_status(as_json=True)["regions"])
client.unregister_system_shared_memory()
found["none"] = client.get_system_shared_memory_status(as_json=True).get("regions", {})
"""


@pytest.mark.timeout(150)
async def test_tensors_in_buffers_of_the_memory_server(running: Stack, llmos: Client) -> None:
    size = 4096
    async with BufferClient(llmos.channel) as buffers:
        given, taken = await buffers.create(size), await buffers.create(size)
        x = np.random.default_rng(1).standard_normal((4, 32)).astype(np.float32)
        given.array("float32", (4, 32), 128)[:] = x
        found = run(running, SHARED, key_of(given.handle), key_of(taken.handle), str(size))
        y = taken.array("float32", (4, 8)).copy()
    inline = await llmos.infer("tiny")
    assert inline.shape == (8,)
    weight = np.random.default_rng(0).standard_normal((32, 8), dtype=np.float32)
    np.testing.assert_allclose(y, x @ weight, atol=1e-4)
    assert found["where"] == "out" and found["inline"] == 0
    assert found["status"] == ["in", "out"] and found["left"] == ["out"] and not found["none"]
    codes = [code.removeprefix("StatusCode.") for code in found["errors"]]
    assert codes == [
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "OUT_OF_RANGE",
        "NOT_FOUND",
        "INVALID_ARGUMENT",
        "INVALID_ARGUMENT",
    ]


OWN_SEGMENTS = """
import os
import tritonclient.utils.shared_memory as shm
x = np.random.default_rng(1).standard_normal((4, 32)).astype(np.float32)
found["errors"] = []
def registers(name, key, size, offset=0):
    return fails(lambda: client.register_system_shared_memory(name, key, size, offset))
names = [f"/llmostest-{os.getpid()}-{side}" for side in ("in", "out", "hidden")]
names[2] = names[2].replace("test", "other")
segments = [shm.create_shared_memory_region(n, n, 4096) for n in names]
try:
    shm.set_shared_memory_region(segments[0], [x])
    client.register_system_shared_memory("own in", names[0], 512)
    client.register_system_shared_memory("own out", names[1], 256, 128)
    given = triton.InferInput("x", [4, 32], "FP32")
    given.set_shared_memory("own in", 512)
    wanted = triton.InferRequestedOutput("y")
    wanted.set_shared_memory("own out", 128)
    client.infer("tiny", [given], outputs=[wanted], client_timeout=60)
    found["y"] = shm.get_contents_as_numpy(segments[1], np.float32, [4, 8], 128).tolist()
    found["errors"].append(registers("hidden", names[2], 64))
    found["errors"].append(registers("none", "/llmostest-none", 64))
    found["errors"].append(registers("path", "/../dev/shm" + names[0], 64))
    found["errors"].append(registers("large", names[0], 4096, 1))
    os.truncate("/dev/shm" + names[0], 8)  # a client that cuts its segment harms no worker
    found["errors"].append(fails(lambda: client.infer("tiny", [given], client_timeout=60)))
    given = tensor("x", x)
    client.infer("tiny", [given], outputs=[wanted], client_timeout=60)
finally:
    for segment in segments:
        shm.destroy_shared_memory_region(segment)
"""


@pytest.mark.timeout(150)
async def test_segments_of_its_own_shared_memory_module(running: Stack, llmos: Client) -> None:
    pid = (await llmos.load("tiny")).pid
    found = run(running, OWN_SEGMENTS)
    x = np.random.default_rng(1).standard_normal((4, 32)).astype(np.float32)
    weight = np.random.default_rng(0).standard_normal((32, 8), dtype=np.float32)
    np.testing.assert_allclose(np.array(found["y"]), x @ weight, atol=1e-4)
    assert [code.removeprefix("StatusCode.") for code in found["errors"]] == [
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "INVALID_ARGUMENT",
        "OUT_OF_RANGE",
        "OUT_OF_RANGE",
    ]
    assert (await llmos.models())["tiny@1"].pid == pid


STREAMED = """
answers = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
for i in range(12):
    client.async_stream_infer("tiny", [tensor("x", np.full((1, 32), i, np.float32))],
                              request_id=str(i))
client.async_stream_infer("tiny", [tensor("x", np.ones((1, 31), np.float32))], request_id="bad")
client.async_stream_infer("tiny", [tensor("x", np.ones((1, 32), np.float32))], request_id="end")
found["ids"], found["sums"], found["errors"] = [], [], []
for _ in range(14):
    result, error = answers.get(timeout=60)
    if error is not None:
        found["errors"].append(str(error))
        continue
    found["ids"].append(result.get_response().id)
    found["sums"].append(float(result.as_numpy("y").sum()))
client.stop_stream()
"""


@pytest.mark.timeout(150)
async def test_a_stream_answers_in_order_and_outlives_an_error(
    running: Stack, llmos: Client
) -> None:
    found = run(running, STREAMED)
    assert found["ids"] == [*map(str, range(12)), "end"]
    np.testing.assert_allclose(
        found["sums"][:12], np.arange(12) * found["sums"][1], rtol=1e-3, atol=1e-3
    )
    assert len(found["errors"]) == 1 and "[1, 31]" in found["errors"][0]


SEQUENCES = """
speech = np.sin(np.arange(512 * 6) / 9).astype(np.float32).reshape(6, 1, 512)
def listen(id):
    return [client.infer("vad", [tensor("input", piece)], sequence_id=id, sequence_start=not i,
                         sequence_end=i == 5, client_timeout=60).as_numpy("output").item()
            for i, piece in enumerate(speech)]
found["one"], found["other"] = listen(7), listen("a text")
found["gone"] = fails(lambda: client.infer("vad", [tensor("input", speech[0])], sequence_id=7))
found["config"] = client.get_model_config("vad", as_json=True)["config"]
answers = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
client.async_stream_infer("vad-stream", [tensor("input", speech.reshape(1, -1))],
                          enable_empty_final_response=True)
found["streamed"] = []
while True:
    result, error = answers.get(timeout=60)
    assert error is None, error
    if result.as_numpy("output") is not None:
        found["streamed"].append(result.as_numpy("output").item())
    if result.get_response().parameters["triton_final_response"].bool_param:
        break
client.stop_stream()
found["decoupled"] = fails(lambda: client.infer("vad-stream", [tensor("input", speech[0])]))
"""


@pytest.mark.timeout(150)
async def test_sequences_and_decoupled_streams(running: Stack, llmos: Client) -> None:
    await import_vad(llmos, running, "vad", VAD)
    await import_vad(llmos, running, "vad-stream", VAD + '[stream]\ninput="input"\nchunk=512\n')
    found = run(running, SEQUENCES)
    assert len(found["one"]) == 6 and found["one"] == pytest.approx(found["other"])
    assert found["streamed"] == pytest.approx(found["one"], abs=1e-6)
    assert found["gone"] == "StatusCode.FAILED_PRECONDITION"
    assert found["decoupled"] == "StatusCode.UNIMPLEMENTED"
    states = found["config"]["sequence_batching"]["state"]
    assert [(s["input_name"], s["output_name"]) for s in states] == [("state", "stateN")]


AIO = """
import asyncio
import tritonclient.grpc.aio as aio
async def main():
    async with aio.InferenceServerClient(sys.argv[1]) as client:
        found["live"] = await client.is_server_live()
        x = np.ones((1, 32), np.float32)
        calls = [client.infer("tiny", [tensor("x", x * i)], client_timeout=60) for i in range(8)]
        found["sums"] = [float(a.as_numpy("y").sum()) for a in await asyncio.gather(*calls)]
        async def requests():
            for i in range(4):
                yield {"model_name": "tiny", "inputs": [tensor("x", x * i)], "request_id": str(i)}
        found["ids"] = []
        async for result, error in client.stream_infer(requests()):
            found["ids"].append(result.get_response().id)
asyncio.run(main())
"""


@pytest.mark.timeout(150)
async def test_asyncio_client(running: Stack, llmos: Client) -> None:
    found = run(running, AIO)
    assert found["live"] and found["ids"] == ["0", "1", "2", "3"]
    np.testing.assert_allclose(found["sums"], np.arange(8) * found["sums"][1], rtol=1e-3, atol=1e-3)
