"""Model files: GGUF written here gives the reference's logits; damaged files give one sentence."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmos.lib.errors import FailedPrecondition, LLMOSError, Unavailable
from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.torch import check, estimate_bytes, load
from llmos.servers.execution.engine.torch.kv import KVCache, Span

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(tiny: Any, path: Path, kind: gguf.GGMLQuantizationType, **changes: Any) -> ModelSpec:
    """Convert the tiny model as llama.cpp's converter does."""
    arch = changes.get("arch", "llama")
    tokenizer = json.loads((tiny.folder / "tokenizer.json").read_bytes())
    vocab = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    types = [3 if i < 3 else 1 for i in range(len(vocab))]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(changes.get("heads", 4))
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.get("pre", "gpt-2"))
    writer.add_token_list(vocab)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(2)
    for name, weight in tiny.reference.state_dict().items():
        array = weight.float().numpy()
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = 4 if "q_proj" in name else 2
            halves = array.reshape(heads, 2, -1, *array.shape[1:])
            array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
        base, end = name.rsplit(".", 1)
        if base.startswith("model.layers."):
            _, _, layer, rest = base.split(".", 3)
            base = f"blk.{layer}.{NAMES[rest]}"
        else:
            base = NAMES[base]
        if array.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(f"{base}.{end}", gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{base}.{end}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ModelSpec("tiny@2", "gguf", "generate", {"tiny.gguf": path}, threads=1)


def last_logits(spec: ModelSpec, ids: list[int]) -> torch.Tensor:
    engine = load(spec, "float32")
    try:
        model = engine._loop._model
        cache = KVCache(model.geometry, 512)
        with torch.inference_mode():
            return model.forward(cache, ids, [Span(range(16), 0, len(ids))], range(len(ids)))
    finally:
        engine.close()


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1", "Q5_0"])
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_gguf_gives_the_logits_of_its_source(
    tmp_path: Path, make_tiny: Any, arch: str, kind: str
) -> None:
    tiny = make_tiny(tmp_path / "hf", arch)
    quantisation = gguf.GGMLQuantizationType[kind]
    spec = write_gguf(tiny, tmp_path / "tiny.gguf", quantisation, arch=arch)
    ids = list(range(30, 70))
    if kind != "F32":  # the reference gets what quantising leaves of its weights
        for weight in tiny.reference.parameters():
            if weight.ndim == 2:
                rounded = gguf.dequantize(
                    gguf.quantize(weight.detach().numpy(), quantisation), quantisation
                )
                weight.data = torch.from_numpy(np.array(rounded, np.float32))
    with torch.inference_mode():
        theirs = tiny.reference(torch.tensor([ids])).logits[0]
    assert float((last_logits(spec, ids) - theirs).abs().max()) < 2e-5 * float(theirs.abs().max())


def test_checking_and_sizing_import_no_torch(smollm_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from llmos.servers.execution.engine.base import ModelSpec\n"
        "from llmos.servers.execution.engine.torch import check, estimate_bytes\n"
        "spec = ModelSpec('m@1', 'gguf', 'generate', {'m.gguf': Path(sys.argv[1])})\n"
        "check(spec)\n"
        "assert not {'torch', 'gguf', 'tokenizers'} & set(sys.modules)\n"
        "print(estimate_bytes(spec))\n"
    )
    command = [sys.executable, "-c", code, str(smollm_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert 0.5e9 < int(out.stdout) < 4e9


def edit_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | changes))

    return edit


def edit_weight(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Any:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        changed = change(tensors.pop(name))
        if changed is not None:
            tensors[name] = changed.contiguous()
        (folder / "model.safetensors").unlink()
        save_file(tensors, folder / "model.safetensors")

    return edit


def truncate(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def replace_file(name: str, data: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(data)


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("edit", "reason", "why"),
    [
        (edit_json("config.json", architectures=["BertModel"]), "NO_ENGINE", "BertModel"),
        (edit_json("config.json", architectures=None), "NO_ENGINE", "architecture"),
        (edit_json("config.json", mlp_bias=True), "NO_ENGINE", "bias"),
        (edit_json("config.json", quantization_config={}), "NO_ENGINE", "quantised"),
        (edit_json("config.json", rope_parameters={"rope_type": "yarn"}), "NO_ENGINE", "yarn"),
        (edit_json("config.json", hidden_size="64"), "LOAD_FAILED", "hidden_size"),
        (edit_json("config.json", num_key_value_heads=3), "LOAD_FAILED", "evenly"),
        (edit_json("config.json", intermediate_size=128), "LOAD_FAILED", "shape"),
        (edit_json("config.json", num_hidden_layers=3), "LOAD_FAILED", "no tensor"),
        (edit_json("config.json", vocab_size=300), "LOAD_FAILED", "379 tokens"),
        (replace_file("config.json", b"{"), "LOAD_FAILED", "JSON"),
        (replace_file("config.json", b"[1]"), "LOAD_FAILED", "JSON object"),
        (replace_file("tokenizer.json", b"{}"), "LOAD_FAILED", "no tokenizer"),
        (truncate("model.safetensors", 20_000), "LOAD_FAILED", "no whole safetensors"),
        (replace_file("model.safetensors", b""), "LOAD_FAILED", "no whole safetensors"),
        (edit_weight(DOWN, lambda w: w * torch.nan), "LOAD_FAILED", "not finite"),
        (edit_weight(DOWN, lambda w: w[:, :10]), "LOAD_FAILED", "shape"),
        (edit_weight(DOWN, lambda w: None), "LOAD_FAILED", "no tensor"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "LOAD_FAILED", "tokenizer.json"),
    ],
)
def test_a_bad_directory_says_why(
    tmp_path: Path, make_tiny: Any, edit: Callable[[Path], None], reason: str, why: str
) -> None:
    tiny = make_tiny(tmp_path)
    edit(tmp_path)
    with pytest.raises(LLMOSError, match=why) as caught:
        load(tiny.spec(), "float32")
    assert caught.value.reason == reason and str(caught.value).endswith(".")
    assert isinstance(caught.value, FailedPrecondition if reason == "NO_ENGINE" else Unavailable)
    if reason == "NO_ENGINE":
        with pytest.raises(FailedPrecondition):
            check(tiny.spec())


def test_a_bad_gguf_says_why(tmp_path: Path, tiny: Any) -> None:
    f32 = gguf.GGMLQuantizationType.F32
    good = tmp_path / "tiny.gguf"
    spec = write_gguf(tiny, good, f32)
    data = good.read_bytes()
    for size, why in [
        (10, "too short"),
        (900, "inside its header"),
        (len(data) - 4000, "truncated"),
    ]:
        good.write_bytes(data[:size])
        with pytest.raises(Unavailable, match=why):
            load(spec, "float32")
    for start, why in [(b"ONNX", "does not start"), (b"GGUF\x09", "version 9")]:
        good.write_bytes(start + data[len(start) :])
        with pytest.raises(Unavailable, match=why):
            check(spec)
    with pytest.raises(FailedPrecondition, match="'bert'"):
        check(write_gguf(tiny, good, f32, arch="bert"))
    with pytest.raises(FailedPrecondition, match="'tekken'"):
        load(write_gguf(tiny, good, f32, pre="tekken"), "float32")
    with pytest.raises(Unavailable, match="shape"):
        load(write_gguf(tiny, good, f32, heads=8), "float32")
    with pytest.raises(FailedPrecondition, match="pickle"):
        check(ModelSpec("m@1", "pickle", "generate", {}))
    with pytest.raises(Unavailable, match="no file that ends with"):
        check(ModelSpec("m@1", "gguf", "generate", {}))


def test_flipped_bytes_never_give_anything_but_our_errors(tmp_path: Path, tiny: Any) -> None:
    path = tmp_path / "tiny.gguf"
    spec = write_gguf(tiny, path, gguf.GGMLQuantizationType.F32)
    data = path.read_bytes()
    header = data.index(b"blk.1.ffn_norm")
    chance = random.Random(5)
    refused = 0
    for _ in range(150):
        broken = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            broken[chance.randrange(4, header)] = chance.choice([0, 1, 9, 127, 255])
        path.write_bytes(broken)
        try:
            estimate_bytes(spec)
            load(spec, "float32").close()
        except LLMOSError as error:
            refused += 1
            assert error.reason in ("LOAD_FAILED", "NO_ENGINE")
    assert refused > 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gives_nearly_the_same_logits(tiny: Any) -> None:
    ids = list(range(30, 90))
    on_cpu = last_logits(tiny.spec(), ids)
    on_gpu = last_logits(tiny.spec(device="cuda:0"), ids).cpu()
    assert float((on_cpu - on_gpu).abs().max()) < 1e-2 * float(on_cpu.abs().max())
