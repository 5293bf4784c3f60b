"""How likely a prompt's tokens were; chats with functions, with and without a template for them."""

from __future__ import annotations

import asyncio

import pytest

from llmos.lib.errors import InvalidArgument
from llmos.servers.execution.engine.base import ChatTurn, Generation, Piece
from llmos.servers.execution.engine.torch.chat import ChatTemplate
from llmos.servers.execution.engine.torch.engine import TorchEngine

LONG = "the cat sat on the mat and looked at the moon " * 8  # more than one prefill step
TOOL = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}}


async def pieces(engine: TorchEngine, request: Generation) -> list[Piece]:
    return [piece async for piece in engine.generate(request)]


async def test_prompts_are_scored_as_if_they_had_been_generated(tiny_engine: TorchEngine) -> None:
    request = Generation(prompt="cats", temperature=0, max_tokens=12, logprobs=2)
    made = await pieces(tiny_engine, request)
    told = [p for piece in made for p in piece.logprobs]
    ids = tiny_engine.tokenizer.encode("cats")
    again = Generation(
        tokens=[*ids, *(p.token for p in told)][: len(ids) + 8],
        temperature=0,
        max_tokens=1,
        logprobs=2,
        prompt_logprobs=True,
    )
    for _ in range(2):  # the second time the prefix cache has it, and must not be used
        first, *_ = await pieces(tiny_engine, again)
        scores = first.prompt_logprobs
        assert [s.token for s in scores] == again.tokens
        assert (scores[0].logprob, list(scores[0].top)) == (0.0, [])
        for score, expected in zip(scores[len(ids) :], told, strict=False):
            assert score.token == expected.token
            assert score.logprob == pytest.approx(expected.logprob, abs=1e-4)
            assert score.top[0][0] == expected.top[0][0]


async def test_long_prompts_beside_others(tiny_engine: TorchEngine) -> None:
    scored = Generation(prompt=LONG, temperature=0, max_tokens=2, logprobs=0, prompt_logprobs=True)
    alone = await pieces(tiny_engine, scored)
    free = Generation(prompt="cats", temperature=1, seed=3, max_tokens=20)
    both = await asyncio.gather(*(pieces(tiny_engine, r) for r in (free, scored, free, scored)))
    count = len(tiny_engine.tokenizer.encode(LONG))
    for one in (both[1], both[3]):
        found = [s for piece in one for s in piece.prompt_logprobs]
        assert len(found) == count
        assert found == [s for piece in alone for s in piece.prompt_logprobs]
    assert all(s.logprob <= 0 for s in found)


async def test_a_resumed_generation_does_not_score_again(tiny_engine: TorchEngine) -> None:
    request = Generation(
        prompt="cats", temperature=0, max_tokens=4, logprobs=0, prompt_logprobs=True
    )
    made = [t for piece in await pieces(tiny_engine, request) for t in piece.tokens]
    rest = await pieces(
        tiny_engine,
        Generation(
            prompt="cats",
            temperature=0,
            max_tokens=4,
            logprobs=0,
            prompt_logprobs=True,
            resume=made[:2],
        ),
    )
    assert [t for piece in rest for t in piece.tokens] == made[2:]
    assert not any(piece.prompt_logprobs for piece in rest)


def test_functions_are_told_to_models_without_a_place_for_them() -> None:
    source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    template = ChatTemplate(source, bos="", eos="")
    turns = [
        ChatTurn("system", "Be kind."),
        ChatTurn("user", "Rain?"),
        ChatTurn("assistant", "", [{"name": "weather", "arguments": {"city": "Jinan"}}]),
        ChatTurn("tool", "dry"),
        ChatTurn("tool", "warm"),
    ]
    text = template.render(turns, [TOOL])
    assert text.startswith("[system] Be kind.\n\nYou may call functions")
    assert '"name": "weather", "description"' in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Jinan"}}\n</tool_call>' in text
    assert text.count("[user]") == 2, "what functions gave is one message"
    assert template.render([ChatTurn("user", "a")], [TOOL]).startswith("[system] You may")
    assert template.render([ChatTurn("user", "a")]) == "[user] a\n"


def test_functions_go_to_templates_that_know_them() -> None:
    source = (
        "{% if tools %}{{ tools[0].function.name }}|{% endif %}"
        "{% for m in messages %}{{ m.role }}{% if m.tool_calls %}"
        "({{ m.tool_calls[0].function.name }}){% endif %} {% endfor %}"
    )
    template = ChatTemplate(source, bos="", eos="")
    turns = [ChatTurn("user", "?"), ChatTurn("assistant", "", [TOOL]), ChatTurn("tool", "x")]
    assert template.render(turns, [TOOL]) == "weather|user assistant(weather) tool "
    assert template.render(turns[:1]) == "user "
    with pytest.raises(InvalidArgument):
        template.render([ChatTurn("robot", "x")])
