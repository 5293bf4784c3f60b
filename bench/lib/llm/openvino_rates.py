"""OpenVINO GenAI, continuous batching: python openvino_rates.py Q8_0.gguf; one JSON line.

All requests at once, in process: 64-token prompts, 128 new ones, greedy, no reuse of prefixes.
"""

import json
import random
import sys
import time

import numpy as np
import openvino
import openvino_genai as genai

PROMPT, NEW = 64, 128


def pipeline(path: str) -> "genai.ContinuousBatchingPipeline":
    """Load the model for two threads."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    scheduler.max_num_seqs = 64
    scheduler.enable_prefix_caching = False
    return genai.ContinuousBatchingPipeline(
        path, scheduler, "CPU", {"INFERENCE_NUM_THREADS": 2, "PERFORMANCE_HINT": "LATENCY"}
    )


def seconds(pipe: "genai.ContinuousBatchingPipeline", count: int, length: int, new: int) -> float:
    """Return how long `count` prompts of `length` tokens take to get `new` tokens each."""
    rng = random.Random(count * 1000 + length)
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = new
    config.do_sample = False
    ids = [
        openvino.Tensor(np.array([[rng.randrange(300, 20_000) for _ in range(length)]], np.int64))
        for _ in range(count)
    ]
    begun = time.perf_counter()
    done = pipe.generate(ids, [config] * count)
    assert len(done) == count
    return time.perf_counter() - begun


def main() -> None:
    """Print the best of two rounds; decode without the time of the prompts."""
    pipe = pipeline(sys.argv[1])
    rates = {}
    for count in (1, 8, 32):
        reading = min(seconds(pipe, count, PROMPT, 1) for _ in range(2))
        whole = min(seconds(pipe, count, PROMPT, NEW) for _ in range(2))
        rates[str(count)] = count * (NEW - 1) / (whole - reading)
        rates[f"whole_{count}"] = count * NEW / whole
    rates["prefill"] = 8 * 512 / min(seconds(pipe, 8, 512, 1) for _ in range(2))
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
