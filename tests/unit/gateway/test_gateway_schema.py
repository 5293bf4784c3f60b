import json
from typing import Any

import pytest

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.lib.errors import InvalidArgument
from llmos.servers.gateway import convert, oip_infer
from llmos.servers.gateway.finetuning import rows_of
from llmos.servers.gateway.schema import ChatBody, CompletionBody, EmbeddingBody, parse

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def chat(**extra: Any) -> ChatBody:
    return parse(ChatBody, json.dumps(CHAT | extra).encode())


def refusal(cls: Any, raw: bytes) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        parse(cls, raw)
    assert caught.value.message.endswith(".")
    return caught.value


@pytest.mark.parametrize(
    ("extra", "reason", "param"),
    [
        ({"model": None}, "INVALID_TYPE", "model"),
        ({"messages": []}, "INVALID_VALUE", "messages"),
        ({"messages": "hi"}, "INVALID_TYPE", "messages"),
        ({"messages": [{"role": "robot", "content": ""}]}, "INVALID_VALUE", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "MISSING_REQUIRED_PARAMETER", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "INVALID_TYPE",
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "INVALID_VALUE",
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "nom": "Ann"}]},
            "UNKNOWN_PARAMETER",
            "messages[0].nom",
        ),
        ({"temperature": "hot"}, "INVALID_TYPE", "temperature"),
        ({"temperature": "0.5"}, "INVALID_TYPE", "temperature"),
        ({"max_tokens": 0}, "INVALID_VALUE", "max_tokens"),
        ({"max_tokens": -1}, "INVALID_VALUE", "max_tokens"),
        ({"max_tokens": 2**40}, "INVALID_VALUE", "max_tokens"),
        ({"max_tokens": 1.5}, "INVALID_TYPE", "max_tokens"),
        ({"max_tokens": True}, "INVALID_TYPE", "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "INVALID_VALUE", "max_tokens"),
        ({"seed": 2**64}, "INVALID_VALUE", "seed"),
        ({"stop": 3}, "INVALID_TYPE", "stop"),
        ({"stream": "yes"}, "INVALID_TYPE", "stream"),
        ({"stream_options": {"include_usage": True}}, "INVALID_VALUE", "stream_options"),
        ({"n": 0}, "INVALID_VALUE", "n"),
        ({"n": 17}, "INVALID_VALUE", "n"),
        ({"n": True}, "INVALID_TYPE", "n"),
        ({"top_logprobs": 3}, "INVALID_VALUE", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "INVALID_VALUE", "top_logprobs"),
        ({"logit_bias": {"cat": 2}}, "INVALID_VALUE", "logit_bias"),
        ({"tools": [{"type": "function"}]}, "MISSING_REQUIRED_PARAMETER", "tools[0].function"),
        ({"tool_choice": "required"}, "INVALID_VALUE", "tool_choice"),
        ({"tool_choice": "any"}, "INVALID_VALUE", "tool_choice"),
        (
            {"tool_choice": {"type": "function"}},
            "MISSING_REQUIRED_PARAMETER",
            "tool_choice.function",
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "INVALID_VALUE",
            "tool_choice",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "MISSING_REQUIRED_PARAMETER",
            "response_format.json_schema.schema",
        ),
        ({"prediction": {"type": "content"}}, "UNSUPPORTED_PARAMETER", "prediction"),
        ({"temprature": 1}, "UNKNOWN_PARAMETER", "temprature"),
    ],
)
def test_bad_chats_are_refused_by_parameter(extra: Any, reason: str, param: str) -> None:
    error = refusal(ChatBody, json.dumps(CHAT | extra).encode())
    assert (error.reason, error.details["param"]) == (reason, param)
    assert param in error.message


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b"[" * 100_000,
        b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
)
def test_malformed_json_is_refused(raw: bytes) -> None:
    assert refusal(ChatBody, raw).reason == "BAD_JSON"


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_numbers_that_are_none_are_refused(number: bytes) -> None:
    raw = json.dumps(CHAT).encode()[:-1] + b', "temperature": ' + number + b"}"
    refusal(ChatBody, raw)


def test_parameters_that_ask_for_nothing_are_taken() -> None:
    body = chat(
        n=1,
        tools=[],
        tool_choice="auto",
        logprobs=False,
        top_logprobs=0,
        logit_bias={},
        frequency_penalty=0.0,
        presence_penalty=0,
        response_format={"type": "text"},
        user="me",
        store=None,
        metadata={"a": "b"},
    )
    request = convert.chat_requests(body)[0]
    assert request.max_tokens == 0
    assert not request.stop


def test_defaults_of_sampling_are_openais() -> None:
    sampling = convert.chat_requests(chat())[0].sampling
    assert sampling.temperature == 1
    assert not sampling.HasField("top_p")
    assert not sampling.HasField("seed")
    assert not sampling.HasField("top_k")


def test_what_the_client_says_arrives() -> None:
    said = {"top_k": 5, "seed": -1, "stop": "x", "max_completion_tokens": 7, "speculate": 3}
    body = chat(temperature=0, top_p=0, **said)
    request = convert.chat_requests(body)[0]
    sampling = request.sampling
    assert sampling.temperature == 0
    assert 0 < sampling.top_p < 1e-5
    assert (sampling.top_k, sampling.seed) == (5, 2**64 - 1)
    assert (list(request.stop), request.max_tokens, request.speculate) == (["x"], 7, 3)
    with pytest.raises(InvalidArgument):
        chat(speculate=17)


def test_roles_and_parts_of_a_chat() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None},
        {"role": "user", "content": ""},
    ]
    request = convert.chat_requests(chat(messages=messages))[0]
    assert [(m.role, m.content) for m in request.chat.messages] == [
        ("system", "be brief"),
        ("user", "ab"),
        ("assistant", "c"),
        ("user", ""),
    ]


@pytest.mark.parametrize(
    ("prompt", "inputs"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts_of_completions(prompt: Any, inputs: list[Any]) -> None:
    raw = json.dumps({"model": "m", "prompt": prompt}).encode()
    requests = convert.completion_requests(parse(CompletionBody, raw), 8)

    def shown(request: pb.GenerateRequest) -> Any:
        is_text = request.WhichOneof("input") == "prompt"
        return request.prompt if is_text else list(request.tokens.ids)

    assert [shown(r) for r in requests] == inputs
    assert all(r.max_tokens == 16 for r in requests)


@pytest.mark.parametrize("prompt", [None, [], 3, {"a": 1}, ["a", 1], [-1], [2**32], [True], [[]]])
def test_bad_prompts_are_refused(prompt: Any) -> None:
    raw = json.dumps({"model": "m", "prompt": prompt}).encode()
    if prompt == [[]]:  # an empty list of ids is the worker's to judge
        parse(CompletionBody, raw)
        return
    assert refusal(CompletionBody, raw).details["param"] == "prompt"


def test_too_many_prompts_are_refused() -> None:
    body = parse(CompletionBody, json.dumps({"model": "m", "prompt": ["a"] * 9}).encode())
    with pytest.raises(InvalidArgument, match="9 texts and 8") as caught:
        convert.completion_requests(body, 8)
    assert caught.value.reason == "TOO_MANY_PROMPTS"


@pytest.mark.parametrize(
    "extra",
    [
        {"input": [1, 2]},
        {"input": None},
        {"input": ["a", 1]},
        {"input": ["a"] * 2049},
        {"input": "a", "encoding_format": "hex"},
        {"input": "a", "dimensions": 3},
    ],
)
def test_bad_embeddings_are_refused(extra: dict[str, Any]) -> None:
    refusal(EmbeddingBody, json.dumps({"model": "m"} | extra).encode())


def test_functions_and_their_calls() -> None:
    messages = [
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Jinan"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "dry"},
    ]
    (request,) = convert.chat_requests(chat(messages=messages, tools=TOOLS))
    assert json.loads(request.chat.tools[0])["name"] == "weather"
    called = json.loads(request.chat.messages[1].tool_calls[0])
    assert called == {"name": "weather", "arguments": {"city": "Jinan"}}
    assert request.chat.messages[2].role == "tool"
    assert not request.json_schema, "the model may answer in words"
    none = convert.chat_requests(chat(tools=TOOLS, tool_choice="none"))[0]
    assert not none.chat.tools
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        forced = convert.chat_requests(chat(tools=TOOLS, tool_choice=choice))[0]
        schema = json.loads(forced.json_schema)
        assert schema["properties"]["name"] == {"const": "weather"}


def test_formats_become_schemas() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    request = convert.chat_requests(chat(response_format=wanted))[0]
    assert json.loads(request.json_schema) == schema
    request = convert.chat_requests(chat(response_format={"type": "json_object"}))[0]
    assert json.loads(request.json_schema) == {"type": "object"}


def test_several_choices_have_seeds_of_their_own() -> None:
    requests = convert.chat_requests(chat(n=3, seed=5, logprobs=True, top_logprobs=2))
    assert [r.sampling.seed for r in requests] == [5, 6, 7]
    assert all(r.sampling.logprobs == 2 for r in requests)


def test_an_echo_alone_takes_a_step() -> None:
    raw = {"model": "m", "prompt": [[1, 2]], "echo": True, "max_tokens": 0, "logprobs": 1}
    (request,) = convert.completion_requests(parse(CompletionBody, json.dumps(raw).encode()), 8)
    assert (request.max_tokens, request.prompt_logprobs) == (1, True)
    assert refusal(CompletionBody, b'{"model": "m", "prompt": "a", "max_tokens": 0}')


def test_ten_thousand_messages_are_too_many() -> None:
    error = refusal(ChatBody, json.dumps(CHAT | {"messages": CHAT["messages"] * 10_000}).encode())
    assert (error.reason, error.details["param"]) == ("INVALID_VALUE", "messages")
    assert "4096" in str(error.message)


@pytest.mark.parametrize("length", ["99999999999999999999", "-1", "3", "\xb2", ""])
def test_tensors_after_a_header_of_another_length(length: str) -> None:
    with pytest.raises(InvalidArgument, match="Inference-Header-Content-Length"):
        oip_infer.parse(b"{}", length)


@pytest.mark.parametrize(
    "row", [b"5", b'"messages"', b'{"messages": 5}', b'{"prompt": "a"}', b'{"text": "\\ud800"}']
)
def test_training_files_that_are_none(row: bytes) -> None:
    with pytest.raises(InvalidArgument, match="Line 2 of the training file"):
        rows_of(b'{"text": "good"}\n' + row)
