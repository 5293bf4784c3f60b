"""llama.cpp: python llamacpp_rates.py Q8_0.gguf; one JSON line.

Static batches in process, as its own batched-bench does: 64-token prompts, 128 new ones, greedy.
"""

import ctypes
import json
import random
import sys
import time

import llama_cpp as lib
import numpy as np

THREADS, PROMPT, NEW = 2, 64, 128


class Runner:
    """A context for `streams` sequences."""

    def __init__(self, model: ctypes.c_void_p, streams: int) -> None:
        """Allocate."""
        params = lib.llama_context_default_params()
        params.n_ctx = streams * 512
        params.n_batch = params.n_ubatch = 512
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = THREADS
        self.context = lib.llama_init_from_model(model, params)
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self.batch = lib.llama_batch_init(512, 0, 1)

    def decode(self, rows: "list[tuple[int, int, int, bool]]") -> None:
        """Compute (token, position, sequence, logits wanted)."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        if lib.llama_decode(self.context, batch):
            raise SystemExit("llama_decode failed")

    def best(self, row: int) -> int:
        """Return the likeliest token of a row."""
        logits = lib.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())

    def close(self) -> None:
        """Free."""
        lib.llama_batch_free(self.batch)
        lib.llama_free(self.context)


def measure(model: ctypes.c_void_p, streams: int) -> "tuple[float, float]":
    """Return prompt and new tokens a second."""
    runner, rng = Runner(model, streams), random.Random(streams)
    begun = time.perf_counter()
    last = []
    for sequence in range(streams):
        ids = [rng.randrange(300, 20_000) for _ in range(PROMPT)]
        runner.decode([(t, i, sequence, i == PROMPT - 1) for i, t in enumerate(ids)])
        last.append(runner.best(PROMPT - 1))
    middle = time.perf_counter()
    for step in range(NEW - 1):
        runner.decode([(t, PROMPT + step, s, True) for s, t in enumerate(last)])
        last = [runner.best(s) for s in range(streams)]
    end = time.perf_counter()
    runner.close()
    return streams * PROMPT / (middle - begun), streams * (NEW - 1) / (end - middle)


def prefill(model: ctypes.c_void_p) -> float:
    """Return prompt tokens a second of 512-token prompts."""
    runner, rng = Runner(model, 8), random.Random(5)
    begun = time.perf_counter()
    for sequence in range(4):
        ids = [rng.randrange(300, 20_000) for _ in range(511)]
        runner.decode([(t, i, sequence, i == 510) for i, t in enumerate(ids)])
    seconds = time.perf_counter() - begun
    runner.close()
    return 4 * 511 / seconds


def main() -> None:
    """Print the best of two rounds."""
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    model = lib.llama_model_load_from_file(sys.argv[1].encode(), lib.llama_model_default_params())
    rates = {str(n): max(measure(model, n)[1] for _ in range(2)) for n in (1, 8)}
    rates["prefill"] = max(prefill(model) for _ in range(2))
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
