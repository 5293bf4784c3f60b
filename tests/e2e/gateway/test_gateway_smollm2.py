"""The `openai` client, a whole LLM OS, and a real language model."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from whole_os import WholeOS

MODEL = "smollm2"
PARIS: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(os_up: WholeOS) -> Iterator[OpenAI]:
    with OpenAI(base_url=os_up.gateway() + "/v1", api_key="x", max_retries=0) as client:
        yield client


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_chat(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=PARIS, temperature=0, max_completion_tokens=30
    )
    assert "Paris" in (reply.choices[0].message.content or "")
    assert reply.model == f"{MODEL}@1"
    assert reply.usage is not None
    assert 0 < reply.usage.completion_tokens <= 30
    assert reply.usage.prompt_tokens > 10


def test_a_model_by_its_alias(client: OpenAI, os_up: WholeOS) -> None:
    os_up.ok("model", "alias", "set", f"{MODEL}@1", "the-one")
    try:
        model = client.models.retrieve(f"{MODEL}@the-one")
        extra: Any = model.model_extra
        assert (model.id, extra["llmos"]["version"]) == (f"{MODEL}@the-one", 1)
        reply = client.completions.create(model=model.id, prompt="One, two,", max_tokens=2)
        assert reply.model == f"{MODEL}@1"
        assert client.models.retrieve(f"{MODEL}@the-one").id == model.id  # as a worker's key
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(f"{MODEL}@another")
    finally:
        os_up.ok("model", "alias", "rm", f"{MODEL}@the-one")


def test_a_stream_is_the_same_text_as_the_whole(client: OpenAI) -> None:
    params: Any = {"model": MODEL, "messages": PARIS, "seed": 11, "max_tokens": 24}
    whole = client.chat.completions.create(**params).choices[0].message.content
    stream = client.chat.completions.create(
        **params, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 24
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 5


async def test_many_at_once(os_up: WholeOS) -> None:
    async with AsyncOpenAI(base_url=os_up.gateway() + "/v1", api_key="x") as client:

        async def ask(seed: int) -> str:
            reply = await client.completions.create(
                model=MODEL, prompt="Once upon a time", seed=seed, max_tokens=8
            )
            return reply.choices[0].text

        first = await asyncio.gather(*(ask(seed) for seed in range(6)))
        second = await asyncio.gather(*(ask(seed) for seed in range(6)))
    assert first == second, "a seed gives one text, whatever else is in the batch"
    assert len(set(first)) > 1


def test_prompts_token_ids_and_stop(client: OpenAI) -> None:
    prompts = ["One, two, three,", "The sky is"]
    reply = client.completions.create(model=MODEL, prompt=prompts, temperature=0, max_tokens=6)
    assert "four" in reply.choices[0].text
    ids = client.completions.create(model=MODEL, prompt=[504, 5109], temperature=0, max_tokens=2)
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 2
    stopped = client.completions.create(
        model=MODEL, prompt=prompts[0], temperature=0, max_tokens=12, stop=["four"]
    )
    assert "four" not in stopped.choices[0].text
    assert stopped.choices[0].finish_reason == "stop"


def test_models(client: OpenAI) -> None:
    assert MODEL in [m.id for m in client.models.list()]
    assert client.models.retrieve(f"{MODEL}@1").object == "model"


@pytest.mark.parametrize(
    ("extra", "error", "code", "param"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found", "model"),
        ({"model": f"{MODEL}@99"}, openai.NotFoundError, "model_not_found", "model"),
        ({"model": "no/name"}, openai.BadRequestError, "bad_name", "model"),
        ({"temperature": 2.5}, openai.BadRequestError, "bad_sampling", None),
        ({"temperature": 1e300}, openai.BadRequestError, "bad_sampling", None),
        ({"top_p": -1}, openai.BadRequestError, "bad_sampling", None),
        ({"stop": ["x"] * 17}, openai.BadRequestError, "bad_sampling", None),
        ({"max_tokens": 9000}, openai.BadRequestError, "context_length_exceeded", None),
        (
            {"messages": [{"role": "user", "content": "word " * 9000}]},
            openai.BadRequestError,
            "context_length_exceeded",
            None,
        ),
        (
            {"messages": [*PARIS, {"role": "assistant", "content": "I"}]},
            openai.BadRequestError,
            "bad_chat",
            "messages",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input(
    client: OpenAI, extra: Any, error: Any, code: str, param: str | None, stream: bool
) -> None:
    params: Any = {"model": MODEL, "messages": PARIS, "stream": stream}
    with pytest.raises(error) as caught:
        client.chat.completions.create(**(params | extra))
    assert caught.value.code == code
    if param:
        assert caught.value.param == param
    message = caught.value.body["message"]
    assert message.endswith(".")
    assert "Traceback" not in message


def test_an_empty_prompt(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="")
    assert caught.value.code == "empty_prompt"


def test_a_language_model_embeds_too(client: OpenAI) -> None:
    (made,) = client.embeddings.create(model=MODEL, input="a").data
    assert len(made.embedding) == 576


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_the_worker(os_up: WholeOS, stream: bool) -> None:
    body = {"model": MODEL, "prompt": "Count up: 1 2 3", "max_tokens": 4000, "stream": stream}
    body["logit_bias"] = {"0": -100, "2": -100}  # it must not come to an end by itself
    # A stream is left in the middle, so what comes before may take what it takes.
    with httpx.Client(base_url=os_up.gateway(), timeout=120 if stream else 1.5) as client:
        with pytest.raises(httpx.ReadTimeout):
            with client.stream("POST", "/v1/completions", json=body) as reply:
                assert [c["method"].endswith("Generate") for c in calls(os_up)] == [True]
                next(reply.iter_lines())
                raise httpx.ReadTimeout("leave in the middle")
    wait_until(lambda: calls(os_up) == [])


def calls(system: WholeOS) -> list[Any]:
    """Return the running calls of the gateway."""
    return [c for c in system.json("kernel", "calls") if c["caller"] == "gateway"]


def test_operations(os_up: WholeOS) -> None:
    ready = httpx.get(os_up.gateway() + "/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "missing": []})
    metrics = httpx.get(os_up.gateway() + "/metrics").text
    assert "llmos_gateway_requests_total" in metrics
