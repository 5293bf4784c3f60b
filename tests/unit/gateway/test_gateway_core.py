import asyncio
import base64
import struct
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from echo_execution import MODELS, EchoModel

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.lib import errors as lib_errors
from llmos.lib.config import load
from llmos.lib.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, Unavailable
from llmos.servers.gateway import answers, errors, web
from llmos.servers.gateway.answer import chunks, whole
from llmos.servers.gateway.config import GatewayConfig
from llmos.servers.gateway.faces import ChatChoice, TextChoice
from llmos.servers.gateway.generation import Pieces, measured, merged
from llmos.servers.gateway.metrics import Metrics, RequestMeter
from llmos.servers.gateway.observe import route_of
from llmos.servers.gateway.schema import ChatBody, CompletionBody, parse
from llmos.servers.gateway.stream import event, unless_gone
from llmos.servers.gateway.trace import begin

CHAT = parse(ChatBody, b'{"model": "m", "messages": [{"role": "user", "content": "a"}]}')
TEXT = parse(CompletionBody, b'{"model": "m", "prompt": ["x", "y"]}')


def pieces(metrics: Metrics, *prompts: str, model: str = "echo", limit: int = 0) -> Pieces:
    requests = [pb.GenerateRequest(model=model, prompt=p, max_tokens=limit) for p in prompts]
    streams = [EchoModel().generate(r) for r in requests]
    meter = RequestMeter(metrics, begin({"headers": []}))
    return measured(merged(streams), len(streams), meter)


async def test_whole_answers_and_usage() -> None:
    metrics = Metrics()
    texts = [TextChoice(i, TEXT, "x") for i in range(2)]
    answer = await whole(TextChoice, pieces(metrics, "a b c", "d", limit=2), texts, 1)
    choices = [(c["index"], c["text"], c["finish_reason"]) for c in answer["choices"]]
    assert choices == [(0, "a b", "length"), (1, "d", "stop")]
    assert [answer["usage"][f"{what}_tokens"] for what in ("prompt", "completion", "total")] == [
        4,
        3,
        7,
    ]
    assert answer["model"] == "echo@2"
    text = metrics.text().decode()
    assert 'llmos_gateway_tokens_total{kind="completion",model="echo@2",tenant="local"} 3.0' in text
    assert 'time_to_first_token_seconds_count{model="echo@2",tenant="local"} 2.0' in text
    assert 'vllm:generation_tokens_total{model_name="echo@2",tenant="local"} 3.0' in text
    assert 'vllm:e2e_request_latency_seconds_count{model_name="echo@2",tenant="local"} 2' in text
    assert 'vllm:num_requests_running{model_name="echo@2",tenant="local"} 0.0' in text
    assert 'time_per_output_token_seconds_count{model="echo@2",tenant="local"} 1.0' in text


async def test_chunks_of_a_chat() -> None:
    one = [ChatChoice(0, CHAT)]
    made = chunks(ChatChoice, pieces(Metrics(), "a b"), one, 1, with_usage=True)
    got = [chunk async for together in made for chunk in together]
    assert len({c["id"] for c in got}) == 1
    assert [c["choices"][0]["delta"] for c in got[:-1]] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "a"},
        {"content": " b"},
        {},
    ]
    assert [c["usage"] for c in got[:-1]] == [None] * 4
    assert got[-1]["choices"] == []
    assert got[-1]["usage"]["total_tokens"] == 4


async def test_an_error_of_one_stream_ends_all_and_nothing_is_left_running() -> None:
    model = EchoModel()
    requests = [pb.GenerateRequest(model=m, prompt="a b c") for m in ("endless", "breaks")]
    with pytest.raises(Unavailable, match="worker died"):
        async for _ in merged([model.generate(r) for r in requests]):
            pass
    assert (model.running, model.cancelled) == (0, 1)


async def test_closing_early_stops_all_streams() -> None:
    model = EchoModel()
    request = pb.GenerateRequest(model="endless", prompt="a", max_tokens=10**6)
    stream = merged([model.generate(request) for _ in range(3)])
    assert (await anext(stream))[1].text == "a"
    await stream.aclose()
    assert model.running == 0


async def test_a_slow_reader_holds_the_producers_back() -> None:
    made = 0

    async def produce() -> AsyncGenerator[pb.GenerateResponse, None]:
        nonlocal made
        while True:
            made += 1
            yield pb.GenerateResponse(text="x")

    stream = merged([produce(), produce()])
    await anext(stream)
    await asyncio.sleep(0.01)
    assert made < 50
    await stream.aclose()


async def test_a_generation_without_an_end_is_an_error() -> None:
    async def broken() -> AsyncGenerator[pb.GenerateResponse, None]:
        yield pb.GenerateResponse(text="x")

    meter = RequestMeter(Metrics(), begin({"headers": []}))
    with pytest.raises(Internal, match="broke off"):
        await whole(ChatChoice, measured(merged([broken()]), 1, meter), [ChatChoice(0, CHAT)], 1)


async def test_work_is_cancelled_when_the_client_goes() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    async def receive() -> Any:
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    with pytest.raises(lib_errors.Cancelled):
        await unless_gone(receive, work())
    assert cancelled.is_set()


def test_every_error_has_an_http_status() -> None:
    expected = {1: 499, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409}
    expected |= {2: 500, 11: 400, 12: 501, 13: 500, 14: 503, 15: 500, 16: 401}
    for code, cls in lib_errors.BY_CODE.items():
        assert errors.row(cls("X", "y")).status == expected[code]


def test_error_bodies_speak_openai() -> None:
    body = errors.body(NotFound("NO_SUCH_MODEL", "There is none."))["error"]
    assert body == {
        "message": "There is none.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert errors.headers(Unavailable("X", "y")) == {"retry-after": "1", "retry-after-ms": "1000"}
    busy = lib_errors.ResourceExhausted("X", "y", retry_after_s=0.2)
    assert errors.headers(busy) == {"retry-after": "1", "retry-after-ms": "200"}
    assert errors.headers(InvalidArgument("X", "y")) == {}


def test_embeddings_as_base64_are_float32() -> None:
    reply = pb.EmbedResponse(model="m@1", prompt_tokens=3, truncated=[0])
    reply.embeddings.add(values=[0.25, -1.5])
    text = answers.embeddings(reply, as_base64=True)["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(text)) == (0.25, -1.5)
    plain = answers.embeddings(reply, as_base64=False)
    assert plain["data"][0]["embedding"] == [0.25, -1.5]
    assert plain["llmos"] == {"truncated": [0]}


async def test_models_by_name_and_version() -> None:
    models = await EchoModel().list_models()
    ids = [m["id"] for m in answers.model_objects(models)]
    assert ids[3:5] == ["echo", "echo@1"]
    assert len(ids) == len(set(ids)) == len(MODELS)

    def version(ref: str) -> Any:
        found = answers.find_model(models, ref)
        return found and found["llmos"]["version"]

    assert version("echo") == version("echo@2") == 2
    assert version("echo@1") == 1
    assert version("echo@9") is version("nothing") is version("") is None
    for model in models:
        if model.name == "echo":
            model.aliases[:] = ["prod"] if model.version == 1 else ["next"]
            model.keys[:] = [f"echo@{model.version}"]
    assert (version("echo@prod"), version("echo@next"), version("echo@other")) == (1, 2, None)
    models[4].keys.append("echo@prod")  # storage moved it back; version 2 still answers to it
    assert (models[4].name, models[4].version, version("echo@prod")) == ("echo", 2, 2)


def test_events_are_one_line() -> None:
    assert event({"a": "é\n"}) == 'data: {"a":"é\\n"}\n\n'.encode()


def test_routes_for_metrics_are_bounded() -> None:
    assert route_of("/v1/chat/completions") == "/v1/chat/completions"
    assert route_of("/v1/models/a/b") == "/v1/models/{id}"
    assert route_of("/wp-admin") == "other"


def test_request_ids_are_kept_when_sane() -> None:
    def request_id(value: bytes) -> str:
        return begin({"headers": [(b"x-request-id", value)]}).request_id

    assert request_id(b"abc-1") == "abc-1"
    for bad in (b"", b"a b", b"a\r\nb", b"x" * 129, "ä".encode()):
        assert request_id(bad).startswith("req_")


def test_trace_context_is_passed_on() -> None:
    headers = [(b"traceparent", b"00-ab-cd-01"), (b"tracestate", "ä".encode())]
    assert begin({"headers": headers}).passed_on == (("traceparent", "00-ab-cd-01"),)


def test_a_busy_port_is_a_sentence_with_a_cure() -> None:
    first = web.listen("127.0.0.1", 0)
    try:
        port = first.getsockname()[1]
        with pytest.raises(FailedPrecondition, match=f"{port} on .* in use; stop .*--port") as e:
            web.listen("127.0.0.1", port)
        assert e.value.reason == "ADDRESS_IN_USE"
    finally:
        first.close()


def test_an_impossible_address_is_a_sentence() -> None:
    with pytest.raises(FailedPrecondition, match=r"192\.0\.2\.1"):
        web.listen("192.0.2.1", 0)


def test_addresses_fit_urls() -> None:
    sock = web.listen("::1", 0)
    try:
        assert web.address_of(sock).startswith("[::1]:")
    finally:
        sock.close()


def test_the_address_file_lives_as_long_as_the_process(tmp_path: Path) -> None:
    path = tmp_path / web.ADDRESS_FILE
    with web.announced("h:1", tmp_path):
        assert path.read_text() == "h:1\n"
    assert not path.exists()
    with web.announced("h:1", tmp_path):
        path.write_text("h:2\n")
    assert path.read_text() == "h:2\n"


@pytest.mark.parametrize("flag", ["--port=70000", "--request-timeout-s=0", "--drain-s=-1"])
def test_bad_configuration_is_refused(flag: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        load(GatewayConfig, "gateway", [flag, f"--state-dir={tmp_path}"], env={})


def test_first_token_times_are_finite() -> None:
    metrics = Metrics()
    metrics.finished("m", pb.GenerateResponse(usage=pb.Usage(completion_tokens=1)), 1, 1, "t")
    assert "inf" not in metrics.text().decode().replace("+Inf", "")
