"""Small real model files for tests, written by the formats' own libraries."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file


def tiny_gguf(path: Path, *, seed: int = 0, name: str = "Tiny Llama", rows: int = 4) -> Path:
    """Write a llama-like GGUF with a tokenizer; 2 tensors of `rows` x 32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_license("apache-2.0")
    writer.add_context_length(128)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "<|end|>"])
    random = np.random.default_rng(seed)
    for tensor in ("token_embd.weight", "output.weight"):
        writer.add_tensor(tensor, random.standard_normal((rows, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_safetensors(path: Path, *, seed: int = 0, rows: int = 4, name: str = "w") -> Path:
    """Write one F32 tensor of `rows` x 32."""
    random = np.random.default_rng(seed)
    save_file({name: random.standard_normal((rows, 32), dtype=np.float32)}, path)
    return path


def sparse_safetensors(path: Path, size: int) -> Path:
    """Write a valid file with one F32 tensor of `size` bytes of zeros, which takes no disk."""
    tensor = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({"w": tensor}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    return path


def tiny_encoder(folder: Path, *, seed: int = 0) -> Path:
    """Write a sentence-transformers-like folder: weights, config, tokenizer, pooling."""
    (folder / "1_Pooling").mkdir(parents=True)
    tiny_safetensors(folder / "model.safetensors", seed=seed)
    config = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}
    for name, content in {
        "config.json": config,
        "tokenizer.json": {"version": "1.0"},
        "modules.json": [],
        "sentence_bert_config.json": {"max_seq_length": 256},
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "data_config.json": [],
    }.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "README.md").write_text("---\nlicense: mit\ntags:\n- x\n---\n# Tiny\n")
    (folder / "train.py").write_text("raise SystemExit")
    return folder


def tiny_onnx(path: Path, *, external: str = "", seed: int = 0) -> Path:
    """Write y = x @ w; with `external`, w is in that file beside the model."""
    random = np.random.default_rng(seed)
    weight = numpy_helper.from_array(random.standard_normal((32, 8), dtype=np.float32), "w")
    if external:
        raw = weight.raw_data
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": external, "offset": "0", "length": str(len(raw))}.items():
            weight.external_data.add(key=key, value=value)
        if "/" not in external:
            (path.parent / external).write_bytes(raw)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)  # older runtimes too
    onnx.save_model(model, path) if not external else path.write_bytes(model.SerializeToString())
    return path


def random_adapter(folder: Path, width: int = 576, seed: int = 0, base: str = "") -> str:
    """Write a LoRA adapter of the q matrices of a model like SmolLM2, which has 576 wide ones."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    tensors = {}
    for layer in range(30):
        key = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora"
        tensors[f"{key}_A.weight"] = rng.normal(0, 0.3, (4, width)).astype(np.float32)
        tensors[f"{key}_B.weight"] = rng.normal(0, 0.3, (width, 4)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)
