"""Our llama against transformers' on the same weights, in float32, and against itself."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from llmos.servers.execution.engine.torch import load
from llmos.servers.execution.engine.torch.engine import TorchEngine
from llmos.servers.execution.engine.torch.gguf_header import read_header
from llmos.servers.execution.engine.torch.kv import KVCache, Span
from llmos.servers.execution.engine.torch.model import Model
from llmos.servers.execution.engine.torch.pages import BLOCK

_SUBJECTS = [
    "The capital of France",
    "In 1969, 3 men",
    "def add(a, b):\n   ",
    "Water",
    "A good friend",
]
_VERBS = [" is", " was", " return", " boils at", " said:", " and", " 12", "."]
_STARTS = ["", "Once upon a time, ", "Q: ", "# ", "Dear Sir, "]
# 200 prompts; how many of them are compared: all in a full run.
PROMPTS = [a + b + c for a in _STARTS for b in _SUBJECTS for c in _VERBS]
COMPARED = int(os.environ.get("LLMOS_TEST_PROMPTS", "4"))
HF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def model_of(engine: TorchEngine) -> Model:
    return engine._loop._model


def logits_of(model: Model, ids: Sequence[int], cuts: Sequence[int] = ()) -> Tensor:
    """Read `ids` in pieces that end at `cuts`; return the logits of every position."""
    cache = KVCache(model.geometry, 1024)
    table = list(range(-(-len(ids) // BLOCK)))
    rows = []
    with torch.inference_mode():
        for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            span = Span(table, start, end - start)
            rows.append(model.forward(cache, list(ids[start:end]), [span], range(end - start)))
    return torch.cat(rows)


def reference_smollm(path: Path) -> Any:
    """Fill transformers' llama with the file's weights, unpacked by the gguf package."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_theta=100000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    raw = np.memmap(path, mode="r")
    state: dict[str, Tensor] = {}
    for name, info in read_header(path, arrays=False).tensors.items():
        kind = gguf.GGMLQuantizationType(info.type)
        per_block, size = gguf.GGML_QUANT_SIZES[kind]
        end = info.offset + int(np.prod(info.shape)) // per_block * size
        data = raw[info.offset : end].reshape(info.shape[0], -1)
        array = gguf.dequantize(data.view(np.float32) if kind == 0 else data, kind)
        array = np.array(array).reshape(info.shape)
        parts = name.split(".")
        if parts[0] == "blk":
            if parts[2] in ("attn_q", "attn_k"):
                heads = 9 if parts[2] == "attn_q" else 3
                array = array.reshape(heads, 32, 2, 576).swapaxes(1, 2).reshape(-1, 576)
            name = f"model.layers.{parts[1]}.{HF_NAMES[parts[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[parts[0]]
            name += ".weight"
        state[name] = torch.from_numpy(np.ascontiguousarray(array))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert not unexpected and not missing
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


@pytest.fixture(scope="module")
def reference(smollm_path: Path) -> Any:
    return reference_smollm(smollm_path)


def test_smollm_has_the_logits_and_greedy_tokens_of_transformers(
    smollm: TorchEngine, reference: Any
) -> None:
    ours = model_of(smollm)
    for prompt in random.Random(1).sample(PROMPTS, COMPARED):
        ids = smollm.tokenizer.encode(prompt)
        with torch.inference_mode():
            out = reference.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids)),
                max_new_tokens=12,
                do_sample=False,
                pad_token_id=2,
                eos_token_id=None,
            )[0].tolist()
            theirs = reference(torch.tensor([out])).logits[0]
        mine = logits_of(ours, out)
        assert float((mine - theirs).abs().max()) < 1e-3  # of logits up to about 30
        assert mine.argmax(-1)[len(ids) - 1 : -1].tolist() == out[len(ids) :]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        ("llama", {"head_dim": 32, "num_key_value_heads": 1}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 500.0,
                    "factor": 4.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        ),
        ("mistral", {}),
        ("qwen2", {"num_key_value_heads": 4}),
        ("qwen3", {"head_dim": 32}),
    ],
)
def test_tiny_models_from_safetensors_match_transformers(
    tmp_path: Path, make_tiny: Any, kind: str, changes: dict[str, Any]
) -> None:
    tiny = make_tiny(tmp_path, kind, **changes)
    engine = load(tiny.spec(), "float32")
    try:
        ids = torch.randint(3, 400, (90,), generator=torch.Generator().manual_seed(1)).tolist()
        with torch.inference_mode():
            theirs = tiny.reference(torch.tensor([ids])).logits[0]
        mine = logits_of(model_of(engine), ids, [64, 65, 66, 80])
        assert float((mine - theirs).abs().max()) < 2e-5 * float(theirs.abs().max())
    finally:
        engine.close()


def test_cuts_of_a_prompt_and_neighbours_do_not_change_a_bit(smollm: TorchEngine) -> None:
    model = model_of(smollm)
    if not model.exact:
        pytest.xfail("this CPU's kernels round by the number of rows")
    ids = smollm.tokenizer.encode("Numbers: " + " ".join(str(i * 37) for i in range(30)))
    whole = logits_of(model, ids)
    assert torch.equal(logits_of(model, ids, [1, 2, 4, 20, 21, 70]), whole)
    assert torch.equal(logits_of(model, ids, range(1, len(ids))), whole)
    cache = KVCache(model.geometry, 8192)
    tables = [[20 * i + j for j in range(19, 0, -1)] for i in range(4)]
    with torch.inference_mode():
        for start, end in ((0, 50), (50, 51), (51, 52), (52, len(ids))):
            spans = [Span(table, start, end - start) for table in tables]
            wanted = [(end - start) * (i + 1) - 1 for i in range(4)]
            together = model.forward(cache, ids[start:end] * 4, spans, wanted)
            assert torch.equal(together, whole[end - 1].expand(4, -1))


def test_bfloat16_stays_close(tiny: Any, tiny_engine: TorchEngine) -> None:
    rounded = load(tiny.spec(), "bfloat16")
    try:
        ids = list(range(20, 60))
        exact, near = (logits_of(model_of(e), ids, [30, 31]) for e in (tiny_engine, rounded))
        cosines = torch.cosine_similarity(exact, near, dim=-1)
        assert rounded.info.dtype == "bfloat16" and float(cosines.min()) > 0.99
    finally:
        rounded.close()
