"""GPU memory that other processes can map: the few calls of the CUDA driver that it takes.

By ctypes on the driver's own library, which is wherever a GPU can be used (CUDA driver API,
"Memory Management"); neither a toolkit nor torch is needed. Everything happens in the device's
primary context, which torch and the CUDA runtime use, too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from llmos.lib.errors import FailedPrecondition, Internal, ResourceExhausted

IPC_BYTES = 64  # of CUipcMemHandle

_LIBRARY = "libcuda.so.1"
_OUT_OF_MEMORY = 2
_LAZY_PEER_ACCESS = 1  # of cuIpcOpenMemHandle, its only flag
_BUS_ID_BYTES = 32


class _IpcHandle(ctypes.Structure):
    """CUipcMemHandle; passed by value."""

    _fields_ = (("reserved", ctypes.c_ubyte * IPC_BYTES),)


class Cuda:
    """The driver. Blocks; any thread may call."""

    def __init__(self, library: str = _LIBRARY) -> None:
        """Load and initialise it. Raises FailedPrecondition NO_GPU."""
        try:
            self._driver = ctypes.CDLL(library)
        except OSError as exc:
            raise FailedPrecondition(
                "NO_GPU", f"There is no NVIDIA driver here ({exc}); use buffers in RAM."
            ) from exc
        self._driver.cuIpcOpenMemHandle_v2.argtypes = (
            ctypes.c_void_p,
            _IpcHandle,
            ctypes.c_uint,
        )
        for name in ("cuMemFree_v2", "cuIpcCloseMemHandle"):
            getattr(self._driver, name).argtypes = (ctypes.c_uint64,)
        self._driver.cuMemAlloc_v2.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._driver.cuMemsetD8_v2.argtypes = (ctypes.c_uint64, ctypes.c_ubyte, ctypes.c_size_t)
        self._driver.cuIpcGetMemHandle.argtypes = (ctypes.c_void_p, ctypes.c_uint64)
        self._driver.cuMemGetAddressRange_v2.argtypes = (
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_uint64,
        )
        self._contexts: dict[int, ctypes.c_void_p] = {}
        if code := self._driver.cuInit(0):
            raise FailedPrecondition(
                "NO_GPU", f"The NVIDIA driver finds no GPU ({self._text(code)}); use RAM."
            )

    def bus_id(self, device: int) -> str:
        """Return what names a device in all processes, whatever they see of the others.

        Raises FailedPrecondition NO_GPU when there is no such device.
        """
        number, text = ctypes.c_int(), ctypes.create_string_buffer(_BUS_ID_BYTES)
        if code := self._driver.cuDeviceGet(ctypes.byref(number), device):
            raise FailedPrecondition("NO_GPU", f"There is no cuda:{device} ({self._text(code)}).")
        self._check("cuDeviceGetPCIBusId", text, _BUS_ID_BYTES, number)
        return text.value.decode("ascii")

    def device_at(self, bus_id: str) -> int:
        """Return the number of a device. Raises FailedPrecondition NO_GPU when it is not seen."""
        number = ctypes.c_int()
        if code := self._driver.cuDeviceGetByPCIBusId(ctypes.byref(number), bus_id.encode()):
            raise FailedPrecondition(
                "NO_GPU", f"The GPU at {bus_id[:20]!r} is not seen here ({self._text(code)})."
            )
        return number.value

    def allocate(self, device: int, size: int) -> int:
        """Return the address of zeroed memory. Raises ResourceExhausted NO_ROOM."""
        at = ctypes.c_uint64()
        with self._current(device):
            code = self._driver.cuMemAlloc_v2(ctypes.byref(at), size)
            if code == _OUT_OF_MEMORY:
                raise ResourceExhausted(
                    "NO_ROOM", f"cuda:{device} has no {size:,} bytes left; free or unload others."
                )
            self._raise_for("cuMemAlloc_v2", code)
            self._check("cuMemsetD8_v2", at, 0, size)
            self._check("cuCtxSynchronize")
        return at.value

    def free(self, device: int, at: int) -> None:
        """Free what `allocate` returned; nobody else may have it mapped."""
        with self._current(device):
            self._check("cuMemFree_v2", at)

    def export(self, device: int, at: int) -> bytes:
        """Return the handle by which other processes map what `allocate` returned."""
        handle = _IpcHandle()
        with self._current(device):
            self._check("cuIpcGetMemHandle", ctypes.byref(handle), at)
        return bytes(handle.reserved)

    def map(self, device: int, handle: bytes) -> tuple[int, int]:
        """Return the address and the size of another process's memory.

        Raises FailedPrecondition BAD_DEVICE_BUFFER: its process is gone, or it is no handle.
        """
        at, size = ctypes.c_uint64(), ctypes.c_size_t()
        wanted = _IpcHandle.from_buffer_copy(handle)
        with self._current(device):
            code = self._driver.cuIpcOpenMemHandle_v2(ctypes.byref(at), wanted, _LAZY_PEER_ACCESS)
            if code:
                raise FailedPrecondition(
                    "BAD_DEVICE_BUFFER",
                    f"The memory on cuda:{device} cannot be mapped ({self._text(code)}): the "
                    "process that made it is gone, or cannot share.",
                )
            self._check("cuMemGetAddressRange_v2", None, ctypes.byref(size), at)
        return at.value, size.value

    def unmap(self, device: int, at: int) -> None:
        """Let go of what `map` returned."""
        with self._current(device):
            self._check("cuIpcCloseMemHandle", at)

    @contextmanager
    def _current(self, device: int) -> Iterator[None]:
        """Make the device's primary context this thread's own meanwhile."""
        if (context := self._contexts.get(device)) is None:
            number, context = ctypes.c_int(), ctypes.c_void_p()
            self._check("cuDeviceGet", ctypes.byref(number), device)
            self._check("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
            self._contexts[device] = context
        self._check("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            self._check("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _check(self, name: str, *arguments: object) -> None:
        self._raise_for(name, getattr(self._driver, name)(*arguments))

    def _raise_for(self, name: str, code: int) -> None:
        if code:
            raise Internal("CUDA", f"{name} failed: {self._text(code)}.")

    def _text(self, code: int) -> str:
        text = ctypes.c_char_p()
        if self._driver.cuGetErrorString(code, ctypes.byref(text)) or text.value is None:
            return f"error {code}"
        return text.value.decode("utf-8", "replace")
