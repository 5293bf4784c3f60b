"""A buffer in this process: bytes, numpy arrays and torch tensors over it, without a copy."""

from __future__ import annotations

import math
import mmap
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmos.api.memory.v1 import buffers_pb2 as pb
from llmos.lib.errors import DataLoss, OutOfRange

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_AT_ONCE = 16 << 20  # bytes; what is larger may be wanted in part


def _alone() -> int:
    """Return what counting the references to what only a local name has gives; see `take`."""
    thing = object()
    return sys.getrefcount(thing)  # 2 or, where the argument is borrowed, 1


_ONLY_HERE = _alone()


class Mapping:
    """A buffer in this process's memory.

    handle: what to send to others. view: the bytes, without a copy. private: the bytes are a copy,
    as they could not be mapped. lost: the lease is gone, so nobody else can open it any more; the
    bytes here stay valid.
    """

    def __init__(self, handle: pb.BufferHandle, memory: mmap.mmap | bytearray, *, writable: bool):
        """Wrap memory of the size that the handle says."""
        self.handle = handle
        self.private = isinstance(memory, bytearray)
        self.lost = False
        self._writable = writable
        self._memory: mmap.mmap | bytearray | None = memory
        self._view: memoryview | None = memoryview(memory)

    @property
    def writable(self) -> bool:
        """Return whether the bytes may be changed here."""
        return self._writable

    @property
    def view(self) -> memoryview:
        """Return the bytes. Raises ValueError after `close`."""
        if self._view is None:
            raise ValueError(f"The mapping of buffer {self.handle.id} is closed.")
        return self._view if self._writable else self._view.toreadonly()

    def array(self, dtype: Any, shape: Sequence[int] | None = None, offset: int = 0) -> np.ndarray:
        """Return a numpy array over the bytes from `offset`, without a copy.

        shape: by default one dimension, to the end. The array keeps the memory alive after `close`.
        Raises OutOfRange BAD_RANGE when it does not fit.
        """
        import numpy as np

        kind, view = np.dtype(dtype), self.view
        if shape is None:
            shape = (max(0, len(view) - offset) // kind.itemsize,)
        end = offset + kind.itemsize * math.prod(shape)
        if offset < 0 or min(shape, default=0) < 0 or end > len(view):
            raise OutOfRange(
                "BAD_RANGE",
                f"A {kind} array of shape {tuple(shape)} from byte {offset:,} does not fit in "
                f"{len(view):,} bytes.",
            )
        array: np.ndarray = np.asarray(view[offset:end]).view(kind).reshape(shape)
        return array

    def tensor(self, dtype: Any, shape: Sequence[int] | None = None, offset: int = 0) -> Tensor:
        """Return a torch tensor over the bytes, without a copy (DLPack); as `array`.

        dtype: of numpy, or `bfloat16`. torch has no read-only tensors: what is not `writable` ends
        the process with SIGSEGV when it is written to.
        """
        import ctypes

        import torch
        from torch.utils.dlpack import from_dlpack

        brain = str(dtype).removeprefix("torch.") == "bfloat16"
        array = self.array("uint16" if brain else dtype, shape, offset)
        if not array.flags.writeable:  # DLPack refuses to export what nobody may write to
            flat = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
            flat._keep = array  # type: ignore[attr-defined]
            import numpy as np

            array = np.frombuffer(memoryview(flat), array.dtype).reshape(array.shape)
        made: Tensor = from_dlpack(array)
        return made.view(torch.bfloat16) if brain else made

    def freeze(self) -> None:
        """Let nobody write through views and arrays taken from now on."""
        self._writable = False

    def close(self) -> None:
        """Let go of the memory: it is unmapped when the last view or array of it is gone, too.

        So it is never unmapped by force: numpy and torch may hold on to the memory without saying
        so to Python (`torch.frombuffer` does), and would read unmapped pages.
        """
        self._view = self._memory = None

    def take(self) -> mmap.mmap | None:
        """Close; return the memory if no view or array of it is left, and it was mapped."""
        memory, self._view, self._memory = self._memory, None, None
        if isinstance(memory, mmap.mmap) and sys.getrefcount(memory) == _ONLY_HERE:
            return memory
        return None


def map_file(path: str, size: int, *, write: bool) -> mmap.mmap | None:
    """Map a buffer's file; None when it is not in this process's reach."""
    try:
        fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        if os.fstat(fd).st_size != size:
            raise DataLoss("TRUNCATED", "The buffer was cut by a process writing to it.")
        flags, prot = mmap.MAP_SHARED, mmap.PROT_READ
        if write:
            prot |= mmap.PROT_WRITE
            if size <= _AT_ONCE:  # a page fault for every page costs five times as much
                flags |= getattr(mmap, "MAP_POPULATE", 0)
        return mmap.mmap(fd, size, flags=flags, prot=prot)
    finally:
        os.close(fd)
