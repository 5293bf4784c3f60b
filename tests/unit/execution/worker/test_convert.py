from __future__ import annotations

import math

import numpy as np
import pytest

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.lib import rpc
from llmos.lib.errors import InvalidArgument, ResourceExhausted
from llmos.servers.execution.engine.base import ChatTurn, Embeddings, Piece
from llmos.servers.execution.worker import convert


def test_defaults() -> None:
    made = convert.generation(pb.GenerateRequest(prompt="a"), None)
    assert made.temperature == pytest.approx(0.7)
    assert (made.top_p, made.top_k, made.max_tokens) == (1, 0, 0)
    assert made.prompt == "a"
    assert made.chat is None and made.tokens is None
    others = {convert.generation(pb.GenerateRequest(prompt="a"), None).seed for _ in range(8)}
    assert len(others) > 1  # at random


def test_zeros_that_are_set_count() -> None:
    request = pb.GenerateRequest(prompt="a", sampling=pb.Sampling(temperature=0, seed=0))
    made = convert.generation(request, None)
    assert made.temperature == 0
    assert made.seed == 0


def test_a_resumed_stream_keeps_the_first_workers_seed() -> None:
    request = pb.GenerateRequest(prompt="a", sampling=pb.Sampling(seed=1))
    made = convert.generation(request, 7, [3, 4])
    assert made.seed == 7
    assert list(made.resume) == [3, 4]


def test_text_that_is_no_utf8_is_the_callers_fault() -> None:
    raw = pb.GenerateRequest(model="m", prompt="a??b").SerializeToString()
    with pytest.raises(InvalidArgument, match="does not parse") as caught:
        rpc.decode(pb.GenerateRequest.FromString, raw.replace(b"??", b"\xff\xfe"))
    assert caught.value.reason == "BAD_MESSAGE"


def test_chat_and_tokens() -> None:
    chat = pb.Chat(
        messages=[
            pb.ChatMessage(role="system", content="s"),
            pb.ChatMessage(role="user", content="u"),
        ]
    )
    made = convert.generation(pb.GenerateRequest(chat=chat), 0)
    assert made.chat == [ChatTurn("system", "s"), ChatTurn("user", "u")]
    made = convert.generation(pb.GenerateRequest(tokens=pb.TokenIds(ids=[1, 2])), 0)
    assert made.tokens == [1, 2]


@pytest.mark.parametrize(
    "request_",
    [
        pb.GenerateRequest(),
        pb.GenerateRequest(prompt=""),
        pb.GenerateRequest(chat=pb.Chat()),
        pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="user")])),
        pb.GenerateRequest(tokens=pb.TokenIds()),
    ],
)
def test_nothing_to_continue(request_: pb.GenerateRequest) -> None:
    with pytest.raises(InvalidArgument) as caught:
        convert.generation(request_, None)
    assert caught.value.reason == "EMPTY_PROMPT"


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        (pb.Sampling(temperature=-0.1), "temperature"),
        (pb.Sampling(temperature=2.1), "temperature"),
        (pb.Sampling(temperature=math.nan), "temperature"),
        (pb.Sampling(temperature=math.inf), "temperature"),
        (pb.Sampling(top_p=0), "top_p"),
        (pb.Sampling(top_p=1.1), "top_p"),
        (pb.Sampling(top_p=math.nan), "top_p"),
    ],
)
def test_sampling_out_of_range(sampling: pb.Sampling, named: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        convert.generation(pb.GenerateRequest(prompt="a", sampling=sampling), None)
    assert caught.value.reason == "BAD_SAMPLING"
    assert caught.value.details == {"param": named}
    assert named in caught.value.message


@pytest.mark.parametrize("stop", [["x"] * 17, [""]])
def test_bad_stops(stop: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="stop"):
        convert.generation(pb.GenerateRequest(prompt="a", stop=stop), None)


@pytest.mark.parametrize("roles", [["robot"], ["user", "assistant"], [""]])
def test_bad_chats(roles: list[str]) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role=r, content="x") for r in roles])
    with pytest.raises(InvalidArgument) as caught:
        convert.generation(pb.GenerateRequest(chat=chat), None)
    assert caught.value.reason == "BAD_CHAT"


def test_pieces_name_model_and_seed_first_and_last() -> None:
    first = convert.response(Piece("a", [1]), "m@1", 5, first=True)
    assert (first.model, first.seed, first.HasField("usage")) == ("m@1", 5, False)
    middle = convert.response(Piece("b", [2]), "m@1", 5, first=False)
    assert (middle.model, middle.seed) == ("", 0)
    end = Piece("", [], "length", 3, 2, 0.5, math.inf)
    last = convert.response(end, "m@1", 5, first=False)
    assert last.finish_reason == pb.FINISH_REASON_LENGTH
    assert (last.model, last.seed, last.usage.prompt_tokens) == ("m@1", 5, 3)
    assert last.usage.decode_s == 0


def test_texts_are_counted() -> None:
    assert convert.texts(pb.EmbedRequest(texts=["a"])) == ["a"]
    with pytest.raises(InvalidArgument) as empty:
        convert.texts(pb.EmbedRequest())
    assert empty.value.reason == "EMPTY_INPUT"
    with pytest.raises(ResourceExhausted) as many:
        convert.texts(pb.EmbedRequest(texts=["a"] * 2049))
    assert many.value.reason == "TOO_MANY_INPUTS"


def test_vectors() -> None:
    vectors = np.array([[1, 0], [0, 1]], np.float32)
    answer = convert.embeddings(Embeddings(vectors, 9, [1]), "m@1")
    assert [list(e.values) for e in answer.embeddings] == [[1, 0], [0, 1]]
    assert (answer.prompt_tokens, answer.model, list(answer.truncated)) == (9, "m@1", [1])
