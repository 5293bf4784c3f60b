"""The `openai` client, unmodified, against the real process."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

USER: Any = [{"role": "user", "content": "say it again"}]


@pytest.fixture
def client(echo_gateway: tuple[Any, Any]) -> Iterator[OpenAI]:
    process, _ = echo_gateway
    with OpenAI(base_url=process.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="echo", messages=USER, temperature=0, seed=1)
    assert reply.choices[0].message.content == "say it again"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == 6
    assert reply._request_id


def test_a_reply_can_be_sent_back(client: OpenAI) -> None:
    first = client.chat.completions.create(model="echo", messages=USER)
    again = [*USER, first.choices[0].message, {"role": "user", "content": "and more"}]
    reply = client.chat.completions.create(model="echo", messages=again)
    assert reply.choices[0].message.content == "and more"


def test_stream(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="echo", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "say it again"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


def test_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model="echo", messages=USER) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "say it again"


async def test_async(echo_gateway: tuple[Any, Any]) -> None:
    url = echo_gateway[0].url + "/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        reply = await client.chat.completions.create(model="echo", messages=USER)
        assert reply.choices[0].message.content == "say it again"
        stream = await client.completions.create(model="echo", prompt="a b", stream=True)
        assert "".join([c.choices[0].text async for c in stream]) == "a b"


def test_completions(client: OpenAI) -> None:
    reply = client.completions.create(model="echo", prompt=["a", "b"], max_tokens=4)
    assert [c.text for c in reply.choices] == ["a", "b"]


def test_embeddings_in_both_encodings(client: OpenAI) -> None:
    default = client.embeddings.create(model="vec", input="abc")  # the client asks for base64
    floats = client.embeddings.create(model="vec", input=["abc"], encoding_format="float")
    expected = pytest.approx([0.6, 0.8, 1.0])
    assert default.data[0].embedding == expected
    assert floats.data[0].embedding == expected


def test_models(client: OpenAI) -> None:
    assert "echo" in [m.id for m in client.models.list()]
    assert client.models.retrieve("echo@1").id == "echo@1"


@pytest.mark.parametrize(
    ("model", "extra", "error", "code"),
    [
        ("nope", {}, openai.NotFoundError, "model_not_found"),
        ("echo", {"temperature": 3}, openai.BadRequestError, "bad_sampling"),
        ("echo", {"n": 99}, openai.BadRequestError, "invalid_value"),
        ("busy", {}, openai.RateLimitError, "queue_full"),
        ("down", {}, openai.InternalServerError, "load_failed"),
    ],
)
def test_typed_exceptions(client: OpenAI, model: str, extra: Any, error: Any, code: str) -> None:
    for stream in (False, True):
        with pytest.raises(error) as caught:
            client.chat.completions.create(model=model, messages=USER, stream=stream, **extra)
        assert caught.value.code == code


def test_an_error_in_a_stream_is_raised(client: OpenAI) -> None:
    stream = client.chat.completions.create(model="breaks", messages=USER, stream=True)
    with pytest.raises(openai.APIError) as caught:
        for _ in stream:
            pass
    assert caught.value.code == "may_have_run"


def test_the_client_retries_what_says_when(echo_gateway: tuple[Any, Any]) -> None:
    url = echo_gateway[0].url + "/v1"
    with OpenAI(base_url=url, api_key="none", max_retries=2) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="busy", messages=USER)
    assert caught.value.request.headers["x-stainless-retry-count"] == "2"
