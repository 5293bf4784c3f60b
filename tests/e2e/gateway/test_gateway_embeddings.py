"""Embeddings of a real ONNX encoder through a whole LLM OS."""

import math
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from tiny_text import DIM, LENGTH, text_files, text_onnx
from whole_os import WholeOS

MODEL = "tiny-text"


@pytest.fixture(scope="module")
def url(os_up: WholeOS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("encoder")
    text_onnx(folder / "model.onnx")
    text_files(folder)
    os_up.ok("model", "import", str(folder), "--name", MODEL)
    yield os_up.gateway() + "/v1"
    os_up.ok("model", "unload", MODEL)
    os_up.ok("model", "rm", f"{MODEL}@1")


def test_embeddings(url: str) -> None:
    with OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        texts = ["abc", "abd", "a much longer text"]
        packed = client.embeddings.create(model=MODEL, input=texts)  # base64
        plain = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
        alone = client.embeddings.create(model=MODEL, input="abd", encoding_format="float")
    vectors = [d.embedding for d in plain.data]
    assert packed.model == f"{MODEL}@1"
    assert all(len(v) == DIM and math.hypot(*v) == pytest.approx(1, abs=1e-5) for v in vectors)
    for ours, theirs in zip(packed.data, plain.data, strict=True):
        assert ours.embedding == pytest.approx(theirs.embedding)
    assert alone.data[0].embedding == pytest.approx(vectors[1], abs=1e-5)
    assert math.dist(vectors[0], vectors[1]) < math.dist(vectors[0], vectors[2])
    assert plain.usage.prompt_tokens > 10


def test_long_texts_are_cut_and_said_so(url: str) -> None:
    with OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        reply = client.embeddings.create(model=MODEL, input=["a", "b" * 4 * LENGTH])
    assert reply.model_extra == {"llmos": {"truncated": [1]}}


def test_bad_inputs(url: str) -> None:
    with OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model=MODEL, input=[])
        assert caught.value.code == "empty_input"
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model=MODEL, input=[[1, 2]])
        assert caught.value.code == "invalid_type"
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=MODEL, prompt="a")
        assert caught.value.code == "wrong_task"
