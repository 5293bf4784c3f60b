"""Checkpoints: one safetensors file with the tensors, and the rest as JSON in its header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def save(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint: after a crash, the old one or the new one is there, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    seen: set[int] = set()
    apart = {}
    for name, value in tensors.items():  # safetensors takes no tensor twice (tied weights)
        key = value.data_ptr()
        apart[name] = value.clone() if key in seen else value.contiguous()
        seen.add(key)
    save_file(apart, temporary, metadata={"state": json.dumps(state)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return tensors and state. Raises FileNotFoundError."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return tensors, json.loads(file.metadata()["state"])
