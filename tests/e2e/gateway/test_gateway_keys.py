"""Keys made by llmos-ctl: who may, as whom, how much; and the kernel knows the tenant."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import browser as browsers
import ctl_forked
import grpc
import httpx
import pytest
from execution_stack import Stack, stack
from gateway_process import kernel_gateway
from model_files import tiny_onnx

from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 32], "data": [1.0] * 32}]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, httpx.Client]]:
    folder = tmp_path_factory.mktemp("keys")
    flags = ("--auth", "keys", "--admin", "keys", "--cors-origins", "https://app.example")
    with stack(folder) as running, kernel_gateway(folder, *flags) as gateway:
        source = folder / "import" / "tiny"
        source.mkdir(parents=True)
        tiny_onnx(source / "model.onnx")
        with grpc.insecure_channel(running.processes.address("kernel")) as channel:
            stub = registry_pb2_grpc.RegistryStub(channel)
            list(stub.ImportModel(registry_pb2.ImportModelRequest(source=str(source), name="tiny")))
        with httpx.Client(base_url=gateway.url, timeout=60) as http:
            yield running, http


def ctl(running: Stack, *words: str) -> Any:
    done = ctl_forked.run("--state-dir", str(running.state_dir), "-o", "json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def infer(http: httpx.Client, key: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return http.post("/v2/models/tiny/infer", json=BODY, headers=headers)


def test_the_console_asks_for_a_key(world: tuple[Stack, httpx.Client]) -> None:
    browsers.needed()
    running, http = world
    key = ctl(running, "key", "create", "boss", "--admin")["key"]
    headers = {"authorization": f"Bearer {key}"}
    until(lambda: http.get("/llmos/v1/models", headers=headers).status_code == 200)
    with browsers.browser() as browser:
        page = browser.new_page(base_url=str(http.base_url), locale="en-US")
        page.set_default_timeout(browsers.WAIT_MS)
        page.goto("/console/#models")
        field = page.get_by_label("Administrator's API key")
        field.fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_role("alert").filter(has_text="not known").wait_for()
        field.fill(key)
        page.keyboard.press("Enter")
        page.get_by_role("link", name="tiny@1").wait_for()
        assert field.count() == 0


def test_a_keys_life(world: tuple[Stack, httpx.Client]) -> None:
    running, http = world
    made = ctl(running, "key", "create", "team-a", "--name", "test", "--max-calls", "7")
    key = made["key"]
    until(lambda: infer(http, key).status_code == 200)
    assert http.get("/v1/models", headers={"x-api-key": key}).status_code == 200

    listed = ctl(running, "key", "list")["keys"]
    assert [k["id"] for k in listed if k["tenant"] == "team-a"] == [made["id"]]
    kept = ctl(running, "state", "get", f"llmos/api-keys/{made['id']}")
    assert key not in json.dumps(kept), "only a hash is kept"

    with grpc.insecure_channel(running.processes.address("kernel")) as channel:
        tenants = admin_pb2_grpc.AdminStub(channel).ListTenants(admin_pb2.ListTenantsRequest())
    (team,) = (t for t in tenants.tenants if t.limits.tenant == "team-a")
    assert team.ended >= 2
    assert team.limits.max_calls == 7

    ctl(running, "key", "revoke", made["id"])
    until(lambda: infer(http, key).status_code == 401)


@pytest.mark.parametrize("path", ["/v1/models", "/v2", "/v2/models/tiny"])
def test_nothing_without_a_key(world: tuple[Stack, httpx.Client], path: str) -> None:
    http = world[1]
    for headers, reason in [({}, "no_key"), ({"authorization": "Bearer x"}, "bad_key")]:
        reply = http.get(path, headers=headers)
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        error = reply.json()["error"]
        assert error["code"] == reason if path.startswith("/v1") else "key" in error
    assert http.get("/healthz").status_code == 200


def test_a_quota_is_kept(world: tuple[Stack, httpx.Client]) -> None:
    running, http = world
    key = ctl(running, "key", "create", "slow", "--calls-per-s", "1")["key"]
    until(lambda: infer(http, key).status_code == 200)

    def refused() -> bool:
        reply = infer(http, key)
        if reply.status_code != 429:
            return False
        assert float(reply.headers["retry-after-ms"]) > 0
        assert "slow" in reply.json()["error"]
        return True

    until(refused)


def test_other_origins(world: tuple[Stack, httpx.Client]) -> None:
    http = world[1]
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "x-a"}
    mine = http.options("/v1/models", headers={"origin": "https://app.example", **ask})
    assert mine.headers["access-control-allow-origin"] == "https://app.example"
    other = http.options("/v1/models", headers={"origin": "https://evil.example", **ask})
    assert "access-control-allow-origin" not in other.headers
    console = http.get("/llmos/v1", headers={"origin": "https://app.example"})
    assert "access-control-allow-origin" not in console.headers


def test_only_an_admins_key_steers_the_os(world: tuple[Stack, httpx.Client]) -> None:
    running, http = world
    path = "/llmos/v1/kernel/stats"
    assert http.get(path).json()["error"]["code"] == "no_key"
    made = [ctl(running, "key", "create", "ops", *more)["key"] for more in ([], ["--admin"])]
    plain, admin = ({"authorization": f"Bearer {key}"} for key in made)
    until(lambda: http.get(path, headers=admin).status_code == 200)
    until(lambda: http.get("/v1/models", headers=plain).status_code == 200)
    refused = http.get(path, headers=plain)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_admin")
