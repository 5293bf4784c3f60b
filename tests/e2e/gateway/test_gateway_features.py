"""What OpenAI's clients ask of a language model beside text: likelihoods, formats, functions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from whole_os import WholeOS

MODEL = "smollm2"
PARIS: Any = [{"role": "user", "content": "What is the capital of France?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 20}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest.fixture
def client(os_up: WholeOS) -> Iterator[OpenAI]:
    with OpenAI(base_url=os_up.gateway() + "/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
def test_likelihoods_of_a_chat(client: OpenAI, stream: bool) -> None:
    params: Any = {"model": MODEL, "messages": PARIS, "temperature": 0, "max_tokens": 8}
    params |= {"logprobs": True, "top_logprobs": 3}
    if stream:
        found: list[Any] = []
        for chunk in client.chat.completions.create(**params, stream=True):
            likely = chunk.choices[0].logprobs
            found += (likely.content or []) if likely else []
    else:
        likely = client.chat.completions.create(**params).choices[0].logprobs
        assert likely is not None
        found = likely.content or []
    assert len(found) == 8
    for one in found:
        assert one.logprob <= 0
        assert len(one.top_logprobs) == 3
        assert one.token == one.top_logprobs[0].token, "greedy"
    assert "Paris" in "".join(one.token for one in found)


def test_an_echo_scores_the_prompt_as_lm_eval_asks(client: OpenAI) -> None:
    text = "The capital of France is Paris"
    params: Any = {"model": MODEL, "temperature": 0, "max_tokens": 1, "echo": True, "logprobs": 1}
    reply = client.completions.create(prompt=text, seed=1234, **params)
    choice = reply.choices[0]
    likely = choice.logprobs
    assert likely is not None
    assert choice.text.startswith(text)
    tokens, values = likely.tokens or [], likely.token_logprobs or []
    assert "".join(tokens) == choice.text
    assert reply.usage is not None
    assert len(tokens) == reply.usage.prompt_tokens + 1
    assert values[0] is None
    assert tokens[-2] == " Paris"
    last = likely.top_logprobs[-2] if likely.top_logprobs else {}
    assert values[-2] == max(last.values()) > math.log(0.3)
    assert (likely.text_offset or [])[-2] == len("The capital of France is")
    # Token ids in batches, and nothing new at all.
    ids = client.completions.create(
        prompt=[[504, 3575], [504, 6403, 1]], **(params | {"max_tokens": 0})
    )
    assert [len(c.logprobs.tokens or []) for c in ids.choices if c.logprobs] == [2, 3]
    assert ids.usage is not None
    assert ids.usage.completion_tokens == 0


def test_json_by_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    reply = client.chat.completions.create(
        model=MODEL, messages=PARIS, response_format=wanted, seed=1, max_tokens=60
    )
    answer = json.loads(reply.choices[0].message.content or "")
    assert set(answer) == {"city", "big"}
    assert isinstance(answer["big"], bool)


@pytest.mark.parametrize("stream", [False, True])
def test_a_function_that_must_be_called(client: OpenAI, stream: bool) -> None:
    params: Any = {"model": MODEL, "messages": PARIS, "tools": TOOLS, "max_tokens": 60, "seed": 2}
    params["tool_choice"] = {"type": "function", "function": {"name": "get_weather"}}
    if stream:
        with client.chat.completions.stream(**params) as events:
            for _ in events:
                pass
            message = events.get_final_completion().choices[0].message
    else:
        reply = client.chat.completions.create(**params)
        assert reply.choices[0].finish_reason == "tool_calls"
        message = reply.choices[0].message
    (call,) = message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    if not stream:
        told: Any = [
            *PARIS,
            message,
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        after = client.chat.completions.create(
            model=MODEL, messages=told, tools=TOOLS, max_tokens=10, tool_choice="none"
        )
        assert after.choices[0].message.content


def test_several_choices_and_penalties(client: OpenAI) -> None:
    params: Any = {"model": MODEL, "messages": PARIS, "max_tokens": 6, "seed": 4, "n": 3}
    first = client.chat.completions.create(**params)
    again = client.chat.completions.create(**params)
    texts = [c.message.content for c in first.choices]
    assert texts == [c.message.content for c in again.choices]
    assert len(set(texts)) > 1
    forced = client.completions.create(
        model=MODEL, prompt="a", max_tokens=3, temperature=0, logit_bias={"504": 100}
    )
    free = client.completions.create(model=MODEL, prompt="a", max_tokens=3, temperature=0)
    assert forced.choices[0].text != free.choices[0].text
