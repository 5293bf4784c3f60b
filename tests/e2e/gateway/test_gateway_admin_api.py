"""/llmos/v1 over a whole LLM OS: what the console and scripts get."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from whole_os import WholeOS


@pytest.fixture(scope="module")
def api(os_up: WholeOS) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{os_up.gateway()}/llmos/v1", timeout=120) as client:
        yield client


def test_the_live_picture(api: httpx.Client, os_up: WholeOS) -> None:
    system = api.get("/system").json()
    assert system["errors"] == {} and system["stats"]["pid"] == os_up.pid("kernel")
    assert {p["name"] for p in system["processes"]} >= {"kernel", "storage", "gateway"}
    assert {p["name"] for p in system["ports"]} >= {"init", "storage", "gateway"}


@pytest.mark.parametrize(
    "path",
    ["/models", "/versions", "/versions/smollm2/lineage", "/aliases", "/audit", "/audit/check",
     "/storage", "/memory/devices", "/memory/grants", "/memory/changes", "/memory/buffers", "/jobs",
     "/kernel/tenants", "/processes"],
)  # fmt: skip
def test_every_server_answers(api: httpx.Client, path: str) -> None:
    reply = api.get(path)
    assert reply.status_code == 200 and isinstance(reply.json(), dict), reply.text


def test_errors_are_the_systems_own(api: httpx.Client) -> None:
    assert api.get("/jobs/none/watch").status_code == 404
    reply = api.get("/kernel/calls?page_size=20000")
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "bad_page")
    reply = api.post("/models/nobody/load", json={})
    assert reply.status_code == 404 and "nobody" in reply.json()["error"]["message"]
    reply = api.post("/kernel/calls/none/cancel", json={})
    assert reply.json()["error"]["code"] == "no_such_call"
    assert api.post("/kernel/ports/x/drain", json={}).json()["error"]["code"] == "bad_field"


def test_a_log_ends_and_news_go_on(api: httpx.Client) -> None:
    with api.stream("GET", "/logs/gateway?lines=3") as reply:
        text = reply.read().decode()
    assert text.endswith("event: end\ndata: {}\n\n")
    with api.stream("GET", "/events?patterns=console.*") as news:
        lines = news.iter_lines()
        assert next(lines) == ": open"
        assert api.get("/system").status_code == 200  # others are served meanwhile


def test_news_arrive(api: httpx.Client, os_up: WholeOS) -> None:
    with api.stream("GET", "/events?patterns=console.*") as news:
        lines = news.iter_lines()
        next(lines)
        os_up.ok("kernel", "publish", "console.test", '{"n": 7}')
        data = next(line for line in lines if line.startswith("data: "))
    assert json.loads(data[6:])["payload"] == {"n": 7}


def test_a_browser_is_led_to_the_console(os_up: WholeOS) -> None:
    reply = httpx.get(os_up.gateway(), headers={"accept": "text/html"})
    assert reply.headers["location"] == "/console/"
    assert "endpoints" in httpx.get(os_up.gateway()).json()
