"""A small Llama of transformers to GGUF, packed anew, and back to safetensors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from job_world import World, world

from llmos.api.optimizer.v1 import compress_pb2 as pb
from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.optimizer.v1.measure_pb2 import Gate
from llmos.api.storage.v1 import registry_pb2

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries about themselves
DATA = pb.Data(rows=6)
ANY = [Gate(measure="argmax_agreement", least=0.01)]


def tiny_llama(folder: Path) -> Path:
    """Write a random Llama with grouped queries, whose tokens are bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(["<pad>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=1,
        bos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
async def models(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as found:
        await found.import_model(tiny_llama(tmp_path / "m"), "m")
        yield found


async def test_there_and_back(models: World) -> None:
    eight = pb.Quantise(model="m", method=pb.QUANTISE_METHOD_GGUF_Q8_0, data=DATA, name="q8")
    done = await models.run(jobs_pb2.JobSpec(quantise=eight))
    made = await models.version("q8@1")
    assert (made.format, made.task) == (registry_pb2.FORMAT_GGUF, registry_pb2.TASK_GENERATE)
    figures = done.figures("q8_0")
    assert 0 < figures["relative_error"] < 0.05 and figures["argmax_agreement"] > 0.9
    assert figures["size"] < done.figures("original")["size"] / 2

    four = pb.Quantise(
        model="q8@1", method=pb.QUANTISE_METHOD_GGUF_Q4_0, data=DATA, gates=ANY, report_layers=True
    )
    done = await models.run(jobs_pb2.JobSpec(quantise=four))
    layers = done.comparisons["q4_0"].layers
    assert len(layers) == 1 + 2 * 7 and all(0 < layer.error < 1 for layer in layers)
    assert done.figures("q4_0")["size"] < figures["size"]

    back = pb.Export(model="q8@1", format=pb.EXPORT_FORMAT_SAFETENSORS, data=DATA, name="back")
    done = await models.run(jobs_pb2.JobSpec(export=back))
    assert done.figures("safetensors")["relative_error"] < 1e-5
    made = await models.version("back@1")
    assert made.format == registry_pb2.FORMAT_SAFETENSORS
    assert {"config.json", "tokenizer.json"} <= {f.name for f in made.files}

    groups = pb.Prune(
        model="back@1", method=pb.PRUNE_METHOD_STRUCTURED, heads=0.5, channels=0.25, data=DATA
    )
    done = await models.run(jobs_pb2.JobSpec(prune=groups))
    assert done.figures("pruned-structured")["parameters_removed"] > 0.2
