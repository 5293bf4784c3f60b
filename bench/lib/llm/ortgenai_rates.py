"""ONNX Runtime GenAI: python ortgenai_rates.py FOLDER_OF_WEIGHTS; one JSON line.

Its own builder makes the graph: int8 weights in blocks of 32, int8 activations. Static batches in
process: 64-token prompts, 128 new ones, greedy.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime_genai as genai

THREADS, PROMPT, NEW = 2, 64, 128


def built(weights: str, folder: str) -> "genai.Model":
    """Build the graph into `folder` and load it for two threads."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", weights]
    command += ["-o", folder, "-p", "int8", "-e", "cpu", "-c", folder + "/cache"]
    command += ["--extra_options", "block_size=32", "accuracy_level=4", "is_symmetric=true"]
    command += ["hf_token=false"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise SystemExit(f"its builder failed: {made.stderr[-250:]}")
    path = Path(folder) / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = THREADS
    path.write_text(json.dumps(config))
    return genai.Model(folder)


def run(model: "genai.Model", streams: int, length: int, new: int) -> "tuple[float, float]":
    """Return prompt and new tokens a second; the prompts' last step makes the first token."""
    rng = random.Random(1000 * streams + length)
    params = genai.GeneratorParams(model)
    whole = length + new
    params.set_search_options(
        batch_size=streams, max_length=whole, min_length=whole, do_sample=False
    )
    generator = genai.Generator(model, params)
    begun = time.perf_counter()
    generator.append_tokens(
        [[rng.randrange(300, 20_000) for _ in range(length)] for _ in range(streams)]
    )
    generator.generate_next_token()
    middle = time.perf_counter()
    for _ in range(new - 1):
        generator.generate_next_token()
    end = time.perf_counter()
    return streams * length / (middle - begun), streams * (new - 1) / max(end - middle, 1e-9)


def main() -> None:
    """Print the best of two rounds."""
    with tempfile.TemporaryDirectory() as folder:
        model = built(sys.argv[1], folder)
        rates = {str(n): max(run(model, n, PROMPT, NEW)[1] for _ in range(2)) for n in (1, 8)}
        rates["prefill"] = max(run(model, 1, 512, 1)[0] for _ in range(4))
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
