"""The tokenizer against an independent one, and text from tokens."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.lib.errors import InvalidArgument
from llmos.servers.execution.engine.base import ChatTurn
from llmos.servers.execution.engine.torch import load
from llmos.servers.execution.engine.torch.chat import ChatTemplate
from llmos.servers.execution.engine.torch.engine import TorchEngine
from llmos.servers.execution.engine.torch.gguf_header import read_header
from llmos.servers.execution.engine.torch.text import TextStream
from llmos.servers.execution.engine.torch.tokenizer import TextTokenizer

TEXTS = [
    "What is the capital of France?",
    "In 2024 there were 1234567890 of them, 3.14159 and 0x7f; ½ Ⅷ ٣٤.",
    "emoji: 😀 👩‍👩‍👧‍👦 🇫🇷 and 👍🏽",
    "你好,世界!これはテストです。한국어도",
    "def f(x):\n\treturn [i**2 for i in range(10)]  # comment\n\n\n",
    "  leading, trailing   \n \t mixed \r\n blank  ",
    "It's they'll I'd we've DON'T",
    "naïve café Ünïcödé İstanbul ß ﬁ",
    "<html><body class='x'>&amp;</body></html> {'a': 1}",
    "a\u200bb\u00a0c\u3000d\x00e\x7f",
]


# The model's vocabulary lacks a few control characters and unassigned planes.
KNOWN = st.characters(
    exclude_categories=["Cs", "Cn"], exclude_characters="\x04\x06\x13\x14\x16\x1d"
)


class ReferenceBpe:
    """Byte-pair encoding as llama.cpp does it for `smollm`: the rule by the book, no library."""

    PATTERN = regex.compile(
        r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )

    def __init__(self, metadata: dict[str, Any]) -> None:
        self.ids = {t: i for i, t in enumerate(metadata["tokenizer.ggml.tokens"])}
        merges = metadata["tokenizer.ggml.merges"]
        self.ranks = {tuple(m.split(" ")): rank for rank, m in enumerate(merges)}
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [b for b in range(256) if b not in visible]
        self.chars = {b: chr(b) for b in visible}
        self.chars |= {b: chr(256 + i) for i, b in enumerate(others)}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        # First every digit is cut out, then what lies between is cut by GPT-2's rule.
        for piece in regex.findall(r"\p{N}|[^\p{N}]+", text):
            for word in self.PATTERN.findall(piece):
                parts = [self.chars[b] for b in word.encode()]
                while len(parts) > 1:
                    pairs = [
                        (self.ranks.get((a, b), 1 << 30), i)
                        for i, (a, b) in enumerate(pairwise(parts))
                    ]
                    rank, i = min(pairs)
                    if rank == 1 << 30:
                        break
                    parts[i : i + 2] = [parts[i] + parts[i + 1]]
                ids += [self.ids[p] for p in parts]
        return ids


@pytest.fixture(scope="module")
def reference(smollm_path: Path) -> ReferenceBpe:
    return ReferenceBpe(read_header(smollm_path).metadata)


def whole_text(tokenizer: TextTokenizer, ids: list[int]) -> str:
    stream = TextStream(tokenizer, [])
    return "".join(stream.push(token) for token in ids) + stream.flush()


@pytest.mark.parametrize("text", TEXTS)
def test_smollm_ids_are_those_of_the_rule(
    smollm: TorchEngine, reference: ReferenceBpe, text: str
) -> None:
    ids = smollm.tokenizer.encode(text)
    assert ids == reference.encode(text)
    assert whole_text(smollm.tokenizer, ids) == text


def test_any_text_survives_and_follows_the_rule(
    smollm: TorchEngine, reference: ReferenceBpe
) -> None:
    @settings(max_examples=150, deadline=None)
    # Special tokens are not text, but hypothesis finds them among the constants of the code.
    @given(st.text(KNOWN, max_size=40).filter(lambda text: "<|" not in text))
    def check(text: str) -> None:
        ids = smollm.tokenizer.encode(text)
        assert ids == reference.encode(text)
        assert whole_text(smollm.tokenizer, ids) == text

    check()


def test_digits_stand_alone_and_special_tokens_are_whole(smollm: TorchEngine) -> None:
    ids, texts = smollm.tokenize("12 <|im_end|>")
    assert texts == ["1", "2", " ", "<|im_end|>"]
    assert ids[-1] == 2 and 2 in smollm.tokenizer.ends


def test_text_comes_in_whole_characters_only(smollm: TorchEngine) -> None:
    text = "日本語 👩‍👩‍👧‍👦 ok 🇫🇷"
    stream = TextStream(smollm.tokenizer, [])
    pieces = [stream.push(token) for token in smollm.tokenizer.encode(text)]
    assert "" in pieces and "�" not in "".join(pieces)
    assert "".join(pieces) == text


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_stop_texts_are_found_across_tokens(data: st.DataObject) -> None:
    stops = data.draw(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
    pieces = data.draw(st.lists(st.text("abc", min_size=0, max_size=3), max_size=12))

    class Spelled:
        def bytes_of(self, token: int) -> bytes:
            return pieces[token].encode()

    stream = TextStream(Spelled(), stops)  # type: ignore[arg-type]
    said, so_far = "", ""
    for token, piece in enumerate(pieces):
        so_far += piece
        said += stream.push(token)
        # What is said is never taken back: no stop text begins in it.
        assert so_far.startswith(said)
        if stream.stopped:
            break
    cut = min((at for s in stops if (at := so_far.find(s)) >= 0), default=-1)
    if stream.stopped:
        assert said == so_far[:cut]
    else:
        assert cut == -1 and said + stream.flush() == so_far


def test_a_sentencepiece_tokenizer_json_gives_bytes_and_spaces(
    tmp_path: Path, make_tiny: Any
) -> None:
    tiny = make_tiny(tmp_path)
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    for piece in ("▁", "h", "i", "hi", "▁hi"):
        vocab[piece] = len(vocab)
    special = [
        {
            "id": i,
            "content": t,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, t in enumerate(["<unk>", "<s>", "</s>"])
    ]
    about = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "ByteFallback"},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "byte_fallback": True, "ignore_merges": False, "vocab": vocab,
                  "merges": [["h", "i"], ["▁", "hi"]]},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(about))
    engine = load(tiny.spec(), "float32")
    try:
        ids = engine.tokenizer.encode("hi hi é")
        assert [engine.tokenizer.name(i) for i in ids][:2] == ["hi", "▁hi"]
        assert whole_text(engine.tokenizer, ids) == "hi hi é"
        assert 2 in engine.tokenizer.ends
    finally:
        engine.close()


def test_templates_run_in_a_sandbox_and_say_what_is_wrong() -> None:
    user = [ChatTurn("user", "hi")]
    fine = ChatTemplate("{{ bos_token }}{{ messages[0]['content'] | tojson }}", bos="<s>", eos="")
    assert fine.render(user) == '<s>"hi"'
    for source, turns, why in [
        (None, user, "no chat template"),
        ("{% if %}", user, "broken"),
        ("{{ messages.__class__.__mro__ }}", user, "refuses"),
        ("{{ raise_exception('roles must alternate') }}", user, "roles must alternate"),
        ("{{ messages[5].content }}", user, "refuses"),
        ("x", [ChatTurn("robot", "hi")], "role 'robot'"),
        ("x", [*user, ChatTurn("assistant", "yes")], "last message"),
    ]:
        with pytest.raises(InvalidArgument, match=why) as caught:
            ChatTemplate(source, bos="", eos="").render(turns)
        assert caught.value.reason == "BAD_CHAT"
