"""Small real text encoders: a BERT in safetensors for jobs, a table in ONNX for the engine."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

LENGTH = 48
DIM = 32
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_CHARACTERS = string.ascii_letters + string.digits + string.punctuation
_VOCABULARY = [*_SPECIAL, *_CHARACTERS, *(f"##{c}" for c in _CHARACTERS)]


def text_files(folder: Path) -> dict[str, Path]:
    """Write what is beside an encoder's weights; a token is a character. Returns it by name."""
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    ids = {token: index for index, token in enumerate(_VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=1000))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=16)  # as in real files: whoever saved it left it on
    tokenizer.enable_truncation(8)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in {
        "config.json": _bert_config(),
        "sentence_bert_config.json": {"max_seq_length": LENGTH},
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "modules.json": [],
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"},
    }.items():
        (folder / name).write_text(json.dumps(content))
    return {str(p.relative_to(folder)): p for p in folder.rglob("*.json")}


def tiny_bert(folder: Path, seed: int = 0) -> Path:
    """Write a random BERT with two layers as sentence-transformers would."""
    text_files(folder)
    random = np.random.default_rng(seed)
    tensors = {}

    def linear(name: str, out: int, given: int) -> None:
        tensors[f"{name}.weight"] = random.normal(0, 0.1, (out, given)).astype(np.float32)
        tensors[f"{name}.bias"] = random.normal(0, 0.1, out).astype(np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(DIM, np.float32)
        tensors[f"{name}.bias"] = np.zeros(DIM, np.float32)

    sizes = {"word": len(_VOCABULARY), "position": 2 * LENGTH, "token_type": 2}
    for name, size in sizes.items():
        table = random.normal(0, 1, (size, DIM)).astype(np.float32)
        tensors[f"embeddings.{name}_embeddings.weight"] = table
    norm("embeddings.LayerNorm")
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", DIM, DIM)
        linear(f"{layer}.attention.output.dense", DIM, DIM)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", 2 * DIM, DIM)
        linear(f"{layer}.output.dense", DIM, 2 * DIM)
        norm(f"{layer}.output.LayerNorm")
    linear("pooler.dense", DIM, DIM)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def table(seed: int = 7) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return the vectors that `text_onnx` has for the tokens."""
    return np.random.default_rng(seed).normal(0, 1, (len(_VOCABULARY), DIM)).astype(np.float32)


def text_onnx(path: Path, seed: int = 7) -> Path:
    """Write an encoder whose token vectors are a table's rows, zero where the mask is."""
    tensors = [
        numpy_helper.from_array(table(seed), "table"),
        numpy_helper.from_array(np.array([2], np.int64), "last"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["last_hidden_state"]),
    ]
    free = ["batch", "sequence"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, free)
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*free, DIM])
    save_graph(path, nodes, inputs, [output], tensors)
    return path


def save_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    tensors: list[onnx.TensorProto] | None = None,
) -> Path:
    """Write a graph as a model that older runtimes read as well."""
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors or [])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def _bert_config() -> dict[str, object]:
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": len(_VOCABULARY),
        "hidden_size": DIM,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * DIM,
        "max_position_embeddings": 2 * LENGTH,
        "type_vocab_size": 2,
        "pad_token_id": 0,
    }
