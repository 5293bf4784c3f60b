"""Runs the peers of bench/llm.py, each by its own interpreter, and compares ours with them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from llmos.servers.optimizer.job.models import gguf_model

HERE = Path(__file__).parent
PEERS = HERE.parents[1] / ".peers"
PATIENCE_S = 150  # for a process of its own; slower than that it is reported as absent

# peer -> key -> its measure; ours is int8.
RATIOS = {
    "llamacpp": {
        "decode_1_vs_llamacpp": "1",
        "decode_8_vs_llamacpp": "8",
        "prefill_vs_llamacpp": "prefill",
    },
    "ortgenai": {"decode_1_vs_ort": "1"},
    "openvino": {
        "decode_8_vs_openvino": "8",
        "decode_32_vs_openvino": "32",
        "prefill_vs_openvino": "prefill",
    },
}


def compare(result: dict[str, Any], mine: dict[str, Any], model: Path) -> None:
    """Add the peers' rates, CPU seconds, and ratios of ours (`mine`); say why a peer is absent.

    model: Q8_0 in GGUF, in a folder where more may be written.
    """
    for peer, measures in RATIOS.items():
        print(f"{peer} ...", flush=True)
        result |= dict.fromkeys(measures)
        rates = _rates(peer, model)
        if isinstance(rates, str):
            result["absent"][peer] = rates
            continue
        result[peer] = rates
        for key, measure in measures.items():
            name = measure if measure == "prefill" else f"decode_{measure}"
            result[key] = mine[name] / rates[measure]


def _rates(peer: str, model: Path) -> dict[str, float] | str:
    if not (PEERS / peer / ".ready").exists():
        return "not installed (make bench-peers)"
    if peer == "ortgenai":  # its builder reads what transformers writes
        folder = model.with_name("folder")
        folder.mkdir()
        gguf_model.to_folder(model, folder)
        model = folder
    command = [str(PEERS / peer / "bin" / "python"), str(HERE / f"{peer}_rates.py"), str(model)]
    before = os.times()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
    except subprocess.TimeoutExpired:
        return f"it took over {PATIENCE_S} s"
    except subprocess.CalledProcessError as error:
        return f"failed: {error.stderr[-300:]}"
    after = os.times()
    rates: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    used = after.children_user + after.children_system
    return rates | {"cpu_s": used - before.children_user - before.children_system}
