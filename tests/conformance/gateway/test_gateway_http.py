"""What any HTTP client sees, in both worlds."""

import json
from typing import Any, Protocol

import httpx
import pytest

CHAT = "/v1/chat/completions"


class World(Protocol):
    http: httpx.AsyncClient
    model: Any


def chat(model: str = "echo", content: str = "say it again", **extra: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **extra}


def events(text: str) -> list[Any]:
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    data = [line.removeprefix("data: ") for line in lines]
    return [json.loads(d) if d != "[DONE]" else d for d in data]


async def test_chat(world: World) -> None:
    reply = await world.http.post(CHAT, json=chat())
    assert reply.status_code == 200
    answer = reply.json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "echo@2"
    assert answer["choices"][0]["message"]["content"] == "say it again"
    usage = answer["usage"]
    assert [usage[f"{what}_tokens"] for what in ("prompt", "completion", "total")] == [3, 3, 6]


async def test_a_stream_is_chunks_then_done(world: World) -> None:
    options = {"include_usage": True}
    reply = await world.http.post(CHAT, json=chat(stream=True, stream_options=options))
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(reply.text)
    assert done == "[DONE]"
    texts = [c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]]
    assert "".join(texts) == "say it again"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == 3


async def test_parameters_reach_the_os(world: World) -> None:
    body = chat("params", temperature=0.5, top_p=0.25, seed=7, max_tokens=9, stop=["a", "b"])
    answer = (await world.http.post(CHAT, json=body)).json()
    seen = json.loads(answer["choices"][0]["message"]["content"])
    assert seen["sampling"] == {"temperature": 0.5, "top_p": 0.25, "seed": "7"}
    assert (seen["max_tokens"], seen["stop"]) == (9, ["a", "b"])
    assert world.model.metadata["llmos-class"] == "interactive"
    assert 590 < world.model.remaining_s <= 602  # gRPC rounds up


async def test_stop_and_length(world: World) -> None:
    body = chat(content="one two three", stop="two")
    choice = (await world.http.post(CHAT, json=body)).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one", "stop")
    body = chat(content="one two three", max_completion_tokens=2)
    choice = (await world.http.post(CHAT, json=body)).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one two", "length")


@pytest.mark.parametrize("stream", [False, True])
async def test_completions_of_several_prompts(world: World, stream: bool) -> None:
    body = {"model": "echo", "prompt": ["a b", "c", "d e f"], "stream": stream}
    reply = await world.http.post("/v1/completions", json=body)
    texts = ["", "", ""]
    answers = events(reply.text)[:-1] if stream else [reply.json()]
    for answer in answers:
        for choice in answer["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["a b", "c", "d e f"]


async def test_completions_of_token_ids(world: World) -> None:
    reply = await world.http.post("/v1/completions", json={"model": "echo", "prompt": [5, 7]})
    assert reply.json()["choices"][0]["text"] == "5 7"


async def test_embeddings(world: World) -> None:
    reply = await world.http.post("/v1/embeddings", json={"model": "vec", "input": ["abc", "d"]})
    answer = reply.json()
    assert [d["index"] for d in answer["data"]] == [0, 1]
    assert answer["data"][0]["embedding"] == pytest.approx([0.6, 0.8, 1.0])
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


async def test_models(world: World) -> None:
    models = (await world.http.get("/v1/models")).json()["data"]
    assert "vec" in [m["id"] for m in models]
    model = (await world.http.get("/v1/models/echo@1")).json()
    assert (model["id"], model["created"], model["object"]) == ("echo@1", 1_700_000_001, "model")
    missing = await world.http.get("/v1/models/nope")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


LONG = "w " * 51
ERRORS = [
    (chat("nope"), 404, "model_not_found", "model"),
    (chat("echo@9"), 404, "model_not_found", "model"),
    (chat(content=LONG), 400, "context_length_exceeded", None),
    (chat(content=""), 400, "empty_prompt", None),
    (chat(temperature=3), 400, "bad_sampling", "temperature"),
    (chat("vec"), 400, "wrong_task", "model"),
    (chat("busy"), 429, "queue_full", None),
    (chat("down"), 503, "load_failed", None),
    (chat(n=99), 400, "invalid_value", "n"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "status", "code", "param"), ERRORS)
async def test_errors_before_the_first_token(
    world: World, body: dict[str, Any], status: int, code: str, param: str | None, stream: bool
) -> None:
    reply = await world.http.post(CHAT, json=body | {"stream": stream})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (status, code, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    assert ("retry-after" in reply.headers) == (status in (429, 503))


async def test_an_error_in_the_middle_of_a_stream_is_an_event(world: World) -> None:
    reply = await world.http.post(CHAT, json=chat("breaks", stream=True))
    assert reply.status_code == 200
    got = events(reply.text)
    assert got[-1]["error"]["code"] == "may_have_run"
    assert got[-2]["choices"][0]["delta"] == {"content": " it"}


async def test_an_error_in_the_middle_of_a_whole_answer_is_an_error(world: World) -> None:
    reply = await world.http.post(CHAT, json=chat("breaks"))
    assert reply.status_code == 503


async def test_malformed_json(world: World) -> None:
    reply = await world.http.post(CHAT, content=b'{"model": ')
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "bad_json")


async def test_bodies_over_the_limit(world: World) -> None:
    for size in (100_001, 5_000_000):
        reply = await world.http.post(CHAT, content=b"x" * size)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")
    assert (await world.http.get("/healthz")).status_code == 200


async def test_routes_and_methods_that_are_not_there(world: World) -> None:
    reply = await world.http.get("/v1/nothing")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_route")
    reply = await world.http.get(CHAT)
    assert (reply.status_code, reply.json()["error"]["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"


async def test_request_ids(world: World) -> None:
    reply = await world.http.post(CHAT, json=chat(), headers={"x-request-id": "mine"})
    assert reply.headers["x-request-id"] == "mine"
    assert world.model.metadata["x-request-id"] == "mine"
    reply = await world.http.get("/nothing")
    assert reply.headers["x-request-id"].startswith("req_")


async def test_operations(world: World) -> None:
    assert (await world.http.get("/")).json()["name"] == "llmos-gateway"
    assert (await world.http.get("/healthz")).json() == {"status": "ok"}
    ready = await world.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    await world.http.post(CHAT, json=chat())
    metrics = (await world.http.get("/metrics")).text
    line = 'llmos_gateway_requests_total{code="200",model="echo@2",route="/v1/chat/completions"}'
    assert line in metrics
    assert 'requests_in_flight{route="/v1/chat/completions"} 0.0' in metrics
