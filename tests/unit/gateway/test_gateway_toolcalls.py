"""Calls of functions in what models write, in whatever pieces it comes."""

import json

import pytest

from llmos.servers.gateway.toolcalls import ToolText

NAMES = frozenset({"weather"})
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Jinan"}}\n</tool_call>'


def read(text: str, step: int, *, forced: bool = False) -> tuple[str, list[tuple[str, object]]]:
    parser = ToolText(NAMES, forced=forced)
    said = "".join(parser.push(text[i : i + step]) for i in range(0, len(text), step))
    rest, calls = parser.flush()
    return said + rest, [(c.name, json.loads(c.arguments)) for c in calls]


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("text", "said", "count"),
    [
        ("Hello.", "Hello.", 0),
        (CALL, "", 1),
        (f"{CALL}\n{CALL}", "", 2),
        (f"Let me see. {CALL}", "Let me see. ", 1),
        ('{"name": "weather", "arguments": {"city": "Jinan"}}', "", 1),
        ('{"name": "weather", "parameters": {"city": "Jinan"}}', "", 1),
        ('[{"name": "weather", "arguments": {"city": "Jinan"}}]', "", 1),
        ('{"name": "other"}', '{"name": "other"}', 0),
        ("<tool_call>oops</tool_call>", "<tool_call>oops</tool_call>", 0),
        ("a < b <tool", "a < b <tool", 0),
        ("{ not JSON", "{ not JSON", 0),
        (CALL.removesuffix("</tool_call>"), "", 1),
    ],
)
def test_pieces(text: str, said: str, count: int, step: int) -> None:
    assert read(text, step) == (said, [("weather", {"city": "Jinan"})] * count)


def test_what_is_said_is_not_held_back() -> None:
    parser = ToolText(NAMES, forced=False)
    assert parser.push("Hello <too") == "Hello "
    assert parser.push("ls>") == "<tools>"


def test_a_forced_call_is_never_text() -> None:
    call = '{"name": "weather", "arguments": {"city": "Jinan"}}'
    assert read(call, 3, forced=True) == ("", [("weather", {"city": "Jinan"})])
