"""Owns the folder of images (see `image`): which is whose, writing them whole, and its size."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmos.servers.execution.engine import keeping
from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.torch import opaque
from llmos.servers.execution.engine.torch.image import BadImage, Image, write

FORMAT = 1  # to be raised when the names or the meaning of tensors change
_SUFFIX = ".weights"

log = logging.getLogger(__name__)


class Shelf:
    """The images of one state directory. Several workers may use it at once."""

    def __init__(self, state_dir: str) -> None:
        """Use `state_dir`/execution/weights."""
        self._folder = keeping.folder_of(state_dir)

    def key(self, spec: ModelSpec, dtype: str, **facts: object) -> str:
        """Return the name under which a version's weights are kept for this very machine."""
        files = sorted(keeping.identity(spec, name) for name in spec.files)
        known = [FORMAT, files, dtype, sorted(facts.items()), torch.__version__]
        known += [platform.machine(), torch.backends.cpu.get_cpu_capability(), keeping.cpu()]
        return hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()[:32]

    def find(self, key: str) -> Image | None:
        """Return an image; None when there is none, or it is damaged (it is removed then)."""
        path = self._path(key)
        try:
            image = Image(path)
            os.utime(path)  # when it was used last
        except FileNotFoundError:
            return None
        except (BadImage, OSError) as error:
            self.drop(key, str(error))
            return None
        return image

    def keep(
        self, key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> Image | None:
        """Write an image and return it, or None when there is no room for it.

        Under its name only when it is on the disk for sure: what a power failure leaves is whole.
        """
        size = sum(t.numel() * t.dtype.itemsize for t in tensors.values())
        if any(t.is_mkldnn for t in tensors.values()) and not opaque.possible():
            return None
        fresh = ""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not keeping.make_room(self._folder, size):
                log.info("no room for a file of weights", extra={"bytes": size})
                return None
            number, fresh = tempfile.mkstemp(prefix=f".{os.getpid()}-", dir=self._folder)
            with os.fdopen(number, "wb") as file:
                write(file, tensors, facts)
            image = Image(Path(fresh))
        except (OSError, BadImage) as error:
            log.warning("weights are not shared", extra={"cause": str(error)})
            if fresh:
                Path(fresh).unlink(missing_ok=True)
            return None
        threading.Thread(
            target=_settle, args=(Path(fresh), self._path(key)), name="settle", daemon=True
        ).start()
        return image

    def drop(self, key: str, why: str) -> None:
        """Remove an image that is of no use."""
        log.warning("a file of weights is of no use", extra={"cause": why})
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"


def _settle(fresh: Path, final: Path) -> None:
    try:
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(final)
    except OSError as error:
        log.warning("a file of weights is not kept", extra={"cause": str(error)})
        fresh.unlink(missing_ok=True)
