"""Buffers in GPU memory (CUDA IPC): a handle in a message instead of a copy through the host.

    async with BufferClient(channel) as buffers, DeviceBuffers(buffers) as devices:
        mapping = await devices.create(4 << 20)
        mapping.tensor("float32", (1024, 1024)).fill_(1)
        torch.cuda.synchronize()          # what is sent on is only as ready as its stream
        await other.Use(UseRequest(input=mapping.handle))   # there: await devices.open(handle)

The memory belongs to the process that made it, as CUDA has it. Its handle is that of a small
sealed buffer of the memory server, the ticket, which says how to map it: so tokens, leases, and
what becomes of a dead owner's buffers are those of every other buffer. The memory is freed when
nobody has a lease on its ticket any more. What the device has to hold is not in the ticket's
size: the grant of the model that makes it covers it, and NVML counts it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from llmos.api.memory.v1 import buffers_pb2 as pb
from llmos.lib.buffers import BufferClient
from llmos.lib.cuda import IPC_BYTES, Cuda
from llmos.lib.errors import FailedPrecondition, InvalidArgument, OutOfRange
from llmos.lib.mapping import Mapping

if TYPE_CHECKING:
    from torch import Tensor

_KIND = "llmos device memory 1"
_TICKET = 4096  # bytes
_LOOK_S = 0.2  # how often who waits for the last reader looks

log = logging.getLogger(__name__)


class _Memory:
    """Mapped or allocated memory; tensors keep it."""

    def __init__(self, device: int, at: int, size: int) -> None:
        self.device, self.at, self.size = device, at, size


class _Array:
    """A part of it as other libraries take it over: the CUDA array interface, version 3."""

    def __init__(self, memory: _Memory, offset: int, kind: str, shape: tuple[int, ...]) -> None:
        self._memory = memory
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": kind,
            "data": (memory.at + offset, False),
            "version": 3,
        }


class DeviceMapping:
    """GPU memory in this process. handle: what to send to others. device: N of `cuda:N` here."""

    def __init__(self, handle: pb.BufferHandle, memory: _Memory) -> None:
        """Wrap it; see DeviceBuffers."""
        self.handle, self.device, self.size = handle, memory.device, memory.size
        self._memory: _Memory | None = memory

    @property
    def address(self) -> int:
        """Return where it is on the device. Raises ValueError after `free`."""
        return self._held().at

    def tensor(self, dtype: Any, shape: Sequence[int] | None = None, offset: int = 0) -> Tensor:
        """Return a torch tensor over the bytes from `offset`, without a copy.

        dtype: of numpy, or `bfloat16`. shape: by default one dimension, to the end. The tensor
        keeps memory and lease after `free`. Raises OutOfRange BAD_RANGE when it does not fit.
        """
        import numpy as np
        import torch

        memory, brain = self._held(), str(dtype).removeprefix("torch.") == "bfloat16"
        kind = np.dtype("uint16" if brain else dtype)
        if shape is None:
            shape = (max(0, memory.size - offset) // kind.itemsize,)
        end = offset + kind.itemsize * math.prod(shape)
        if offset < 0 or min(shape, default=0) < 0 or end > memory.size:
            raise OutOfRange(
                "BAD_RANGE",
                f"A {dtype} tensor of shape {tuple(shape)} from byte {offset:,} does not fit in "
                f"{memory.size:,} bytes.",
            )
        array = _Array(memory, offset, kind.str, tuple(shape))
        made = torch.as_tensor(array, device=f"cuda:{memory.device}")
        return made.view(torch.bfloat16) if brain else made

    def take(self) -> None:
        """Let go of the memory; it goes with the last tensor."""
        self._memory = None

    def _held(self) -> _Memory:
        if self._memory is None:
            raise ValueError(f"The mapping of buffer {self.handle.id} is closed.")
        return self._memory


class DeviceBuffers:
    """Makes and opens buffers in GPU memory. Not for several loops."""

    def __init__(self, buffers: BufferClient, cuda: Cuda | None = None) -> None:
        """Keep tickets with `buffers`. Raises FailedPrecondition NO_GPU."""
        self._buffers, self._cuda = buffers, cuda or Cuda()
        self._loop = asyncio.get_running_loop()
        self._own: dict[str, weakref.ref[_Memory]] = {}  # made here, by id
        self._open: list[DeviceMapping] = []
        self._ending: set[asyncio.Task[None]] = set()

    async def create(self, size: int, device: int = 0, label: str = "") -> DeviceMapping:
        """Return zeroed memory on a device.

        Raises InvalidArgument BAD_SIZE, ResourceExhausted NO_ROOM, and as BufferClient.create.
        """
        if size <= 0:
            raise InvalidArgument("BAD_SIZE", f"{size} bytes are no buffer; ask for one or more.")
        bus_id = self._cuda.bus_id(device)
        ticket = await self._buffers.create(_TICKET, label or "device memory")
        at = 0
        try:
            at = await asyncio.to_thread(self._cuda.allocate, device, size)
            ipc = self._cuda.export(device, at).hex()
            facts = {"kind": _KIND, "gpu": bus_id, "bytes": size, "ipc": ipc}
            text = json.dumps(facts).encode()
            ticket.view[: len(text)] = text
            await self._buffers.seal(ticket)
        except BaseException:  # also when cancelled: nobody else knows of either
            if at:
                self._cuda.free(device, at)
            await self._buffers.free(ticket)
            raise
        memory = _Memory(device, at, size)
        self._own[ticket.handle.id] = weakref.ref(memory)
        return self._keep(ticket, memory)

    async def open(self, handle: pb.BufferHandle) -> DeviceMapping:
        """Map GPU memory that another process of this host made.

        Raises NotFound NO_SUCH_BUFFER; FailedPrecondition NOT_DEVICE_MEMORY, OTHER_HOST,
        BAD_DEVICE_BUFFER, NO_GPU.
        """
        if (known := self._own.get(handle.id)) is not None and (memory := known()) is not None:
            mapping = DeviceMapping(handle, memory)  # CUDA maps nothing into its own process
            self._open.append(mapping)
            return mapping
        ticket = await self._buffers.open(handle)
        try:
            if ticket.private:
                raise FailedPrecondition(
                    "OTHER_HOST", f"Buffer {handle.id} is on a GPU of another host; send its bytes."
                )
            bus_id, size, ipc = _facts(ticket)
            device = self._cuda.device_at(bus_id)
            at, there = await asyncio.to_thread(self._cuda.map, device, ipc)
            if there < size:
                self._cuda.unmap(device, at)
                raise FailedPrecondition(
                    "BAD_DEVICE_BUFFER", f"Buffer {handle.id} has {there:,} of {size:,} bytes."
                )
        except BaseException:  # also when cancelled: the lease that was taken is given back
            await self._buffers.free(ticket)
            raise
        return self._keep(ticket, _Memory(device, at, size))

    async def free(self, mapping: DeviceMapping) -> None:
        """Let go of memory; it is given back when tensors and other processes have, too."""
        if mapping in self._open:
            self._open.remove(mapping)
        mapping.take()

    async def settled(self) -> None:
        """Wait until what nobody here looks at any more is given back, and others have, too."""
        while self._ending:
            await asyncio.wait(set(self._ending))

    async def __aenter__(self) -> DeviceBuffers:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Free everything, and wait for those who have it mapped."""
        for mapping in list(self._open):
            await self.free(mapping)
        await asyncio.sleep(0)  # those that end now have told the loop
        await self.settled()

    def _keep(self, ticket: Mapping, memory: _Memory) -> DeviceMapping:
        mapping = DeviceMapping(ticket.handle, memory)
        self._open.append(mapping)
        gone = weakref.finalize(memory, self._gone, ticket, memory.device, memory.at)
        gone.atexit = False  # the driver clears up behind a process
        return mapping

    def _gone(self, ticket: Mapping, device: int, at: int) -> None:
        """Nobody here looks at it any more; called in the thread of who was last."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end, ticket, device, at)

    def _end(self, ticket: Mapping, device: int, at: int) -> None:
        task = self._loop.create_task(self._give_back(ticket, device, at))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _give_back(self, ticket: Mapping, device: int, at: int) -> None:
        id = ticket.handle.id
        if self._own.pop(id, None) is None:
            self._cuda.unmap(device, at)
            await self._buffers.free(ticket)
            return
        await self._buffers.free(ticket)
        await self._buffers.settled()
        while await self._buffers.exists(id):
            await asyncio.sleep(_LOOK_S)
        self._cuda.free(device, at)


def _facts(ticket: Mapping) -> tuple[str, int, bytes]:
    """Return GPU, size and CUDA's handle. Raises FailedPrecondition NOT_DEVICE_MEMORY."""
    try:
        facts = json.loads(bytes(ticket.view).rstrip(b"\0"))
        if facts["kind"] != _KIND:
            raise ValueError(facts["kind"])
        bus_id, size, ipc = str(facts["gpu"]), int(facts["bytes"]), bytes.fromhex(facts["ipc"])
        if len(ipc) != IPC_BYTES or size <= 0:
            raise ValueError(ipc)
    except (ValueError, KeyError, TypeError) as exc:
        raise FailedPrecondition(
            "NOT_DEVICE_MEMORY",
            f"Buffer {ticket.handle.id} is in RAM, not on a GPU: open it by BufferClient.",
        ) from exc
    return bus_id, size, ipc
