"""tritonclient.http, unmodified, against the gateway of a real OS; what it never sends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from execution_stack import Stack, stack
from gateway_process import kernel_gateway
from model_files import tiny_onnx

from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc

SCRIPT = """
import json, sys
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException
client = triton.InferenceServerClient(sys.argv[1])
found = {}
x = np.ones((2, 32), np.float32)
def tensor(binary):
    given = triton.InferInput("x", [2, 32], "FP32")
    given.set_data_from_numpy(x, binary_data=binary)
    return given
def fails(call):
    try:
        call()
    except InferenceServerException as exc:
        return [exc.status(), exc.message()]
found["alive"] = [client.is_server_live(), client.is_server_ready()]
answers = []
for binary in (True, False):
    for out in (True, False):
        wanted = triton.InferRequestedOutput("y", binary_data=out)
        answer = client.infer("tiny", [tensor(binary)], outputs=[wanted], request_id="me")
        answers.append(answer.as_numpy("y").tolist())
found["id"] = answer.get_response()["id"]
found["answers"] = answers
found["default"] = client.infer("tiny", [tensor(True)]).as_numpy("y").tolist()
for how in ("gzip", "deflate"):
    squeezed = client.infer("tiny", [tensor(True)], request_compression_algorithm=how)
    found[how] = squeezed.as_numpy("y").tolist()
found["version"] = client.infer("tiny", [tensor(True)], model_version="1").as_numpy("y").tolist()
top = triton.InferRequestedOutput("y", binary_data=False, class_count=3)
found["classes"] = client.infer("tiny", [tensor(True)], outputs=[top]).as_numpy("y").shape
found["ready"] = client.is_model_ready("tiny"), client.is_model_ready("tiny", "1")
found["metadata"] = client.get_model_metadata("tiny")
found["config"] = client.get_model_config("tiny")
found["stats"] = client.get_inference_statistics("tiny")["model_stats"][0]
found["server"] = client.get_server_metadata()["name"]
found["index"] = client.get_model_repository_index()
client.unload_model("tiny")
client.load_model("tiny")
found["regions"] = client.get_system_shared_memory_status()
found["unknown"] = fails(lambda: client.infer("nope", [tensor(True)]))
found["wrong"] = fails(lambda: client.infer("tiny", []))
found["async"] = client.async_infer("tiny", [tensor(True)]).get_result().as_numpy("y").tolist()
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, str]]:
    folder = tmp_path_factory.mktemp("oip")
    with stack(folder) as running, kernel_gateway(folder) as gateway:
        source = folder / "import" / "tiny"
        source.mkdir(parents=True)
        tiny_onnx(source / "model.onnx")
        (source / "serving.toml").write_text("[batching]\nmax = 16\n")
        with grpc.insecure_channel(running.processes.address("kernel")) as channel:
            stub = registry_pb2_grpc.RegistryStub(channel)
            list(stub.ImportModel(registry_pb2.ImportModelRequest(source=str(source), name="tiny")))
        yield running, gateway.url


def test_the_clients_own_calls(world: tuple[Stack, str]) -> None:
    pytest.importorskip("geventhttpclient", reason="tritonclient[http] is not installed")
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, world[1].removeprefix("http://")]
    done = subprocess.run(command, capture_output=True, timeout=120, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["alive"] == [True, True]
    assert found["id"] == "me"
    first = found["answers"][0]
    for name in ("default", "gzip", "deflate", "version", "async"):
        assert found[name] == first, name
    for answer in found["answers"]:
        for row, expected in zip(answer, first, strict=True):
            assert row == pytest.approx(expected)
    assert found["classes"] == [2, 3]
    assert found["ready"] == [True, True]
    assert found["metadata"]["inputs"][0]["name"] == "x"
    assert found["config"]["input"][0]["data_type"] == "TYPE_FP32"
    assert found["config"]["max_batch_size"] == 16
    assert found["stats"]["inference_stats"]["success"]["count"] > 5
    assert found["index"][0]["name"] == "tiny"
    assert found["regions"] == []
    assert found["unknown"][0] == "404"
    assert "nope" in found["unknown"][1]
    assert found["wrong"][0] == "400"


BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 32], "data": [[1.0] * 32]}]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"inputs": [{"name": "x"}]}, "required"),
        ({"inputs": [{**BODY["inputs"][0], "datatype": "FP31"}]}, "FP31"),
        ({"inputs": [{**BODY["inputs"][0], "data": ["a"]}]}, "no FP32"),
        ({"inputs": [{**BODY["inputs"][0], "data": [1e300]}]}, "does not fit"),
        ({"inputs": [{**BODY["inputs"][0], "data": [1.0]}]}, "x"),
        ({"inputs": [{**BODY["inputs"][0], "data": None}]}, "neither"),
        ({"outputs": [{"name": "z"}]}, "z"),
        ({"parameters": {"oops": 1}}, "oops"),
    ],
)
def test_bad_requests(world: tuple[Stack, str], change: dict[str, Any], says: str) -> None:
    reply = httpx.post(f"{world[1]}/v2/models/tiny/infer", json={**BODY, **change}, timeout=60)
    assert reply.status_code == 400, reply.text
    assert says in reply.json()["error"]
    assert "Traceback" not in reply.text


@pytest.mark.parametrize(
    ("content", "length"), [(b"{}", "99"), (b"{}", "x"), (b"[]", "2"), (b"{}tail", "2")]
)
def test_bad_headers(world: tuple[Stack, str], content: bytes, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length}
    url = f"{world[1]}/v2/models/tiny/infer"
    reply = httpx.post(url, content=content, headers=headers, timeout=60)
    assert reply.status_code == 400
    assert reply.json()["error"].endswith(".")


def test_health_of_what_is_not_there(world: tuple[Stack, str]) -> None:
    assert httpx.get(f"{world[1]}/v2/health/live").status_code == 200
    assert httpx.get(f"{world[1]}/v2/models/nope/ready").status_code in (400, 404)
    assert httpx.get(f"{world[1]}/v2/oops").json()["error"]
