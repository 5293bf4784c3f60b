"""The adapters that a model has at hand: as many as there is room for, the latest used ones."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch

from llmos.lib.errors import ResourceExhausted, Unavailable
from llmos.servers.execution.engine.torch.adapter import Adapter
from llmos.servers.execution.engine.torch.model import Model

ROOM = 64 << 20  # bytes; half of the workspace that a model's grant includes


class Adapters:
    """Thread-safe. An adapter that is dropped serves on where a request holds it."""

    def __init__(self, model: Model) -> None:
        """Have none."""
        self._model = model
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Adapter] = OrderedDict()

    def __contains__(self, ref: str) -> bool:
        """Say whether it is at hand."""
        with self._lock:
            return ref in self._known

    def get(self, ref: str) -> Adapter:
        """Return one. Raises Unavailable ADAPTER_DROPPED when others have taken its room."""
        with self._lock:
            if ref not in self._known:
                raise Unavailable(
                    "ADAPTER_DROPPED", f"Other adapters took the room of {ref}; try again."
                )
            self._known.move_to_end(ref)
            return self._known[ref]

    def add(self, ref: str, files: Mapping[str, Path]) -> None:
        """Read one, and drop those used longest ago if need be.

        Raises FailedPrecondition BAD_ADAPTER, ResourceExhausted OVER_BUDGET.
        """
        model = self._model
        with torch.inference_mode():
            made = Adapter(ref, files, model.config, model.dtype, model.geometry.device)
        if made.bytes > ROOM:
            raise ResourceExhausted(
                "OVER_BUDGET",
                f"The adapter {ref} takes {made.bytes >> 20} MB; a model has room for "
                f"{ROOM >> 20} MB of adapters. Use one of a lower rank.",
            )
        with self._lock:
            self._known[ref] = made
            while sum(adapter.bytes for adapter in self._known.values()) > ROOM:
                self._known.popitem(last=False)
