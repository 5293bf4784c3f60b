"""Holding a model: who has no port takes the hold again when the kernel is back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import grpc

from llmos.api.execution.v1 import execution_pb2
from llmos.clients.ctl.progress import note
from llmos.lib.errors import LLMOSError, Unavailable
from llmos.lib.rpc import from_rpc_error

_AGAIN_S = 0.2


class ModelHold:
    """One hold. Between a kernel's death and the next hold others may unload the model."""

    def __init__(self, stub: Any, ref: str, timeout: float | None) -> None:
        """Prepare to hold `ref`. timeout: of the whole, seconds."""
        self._hold = stub.HoldModel
        self._request = execution_pb2.HoldModelRequest(model=ref)
        self._timeout = timeout
        self._call: Any = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def models(self) -> Iterator[execution_pb2.Model]:
        """Yield the model, and again whenever it has a new worker or was taken anew; until `end`.

        Raises what ended the hold. A kernel that goes away does not, once it was held.
        """
        held = False
        while not self._done.is_set():
            self._call = self._hold(self._request, timeout=self._timeout, wait_for_ready=held)
            try:
                for answer in self._call:
                    held = True
                    yield answer.model
            except grpc.RpcError as exc:
                error = from_rpc_error(exc)
                if self._done.is_set():
                    return
                if not held or not isinstance(error, Unavailable):
                    raise error from exc
                note(f"The hold was lost ({error.reason}); taking it again.")
            self._done.wait(_AGAIN_S)

    def beside(self, models: Iterator[execution_pb2.Model]) -> None:
        """Go on holding in a thread, which says what happens."""

        def follow() -> None:
            try:
                for model in models:
                    note(f"{model.name}@{model.version} is held, by worker {model.pid}.")
            except LLMOSError as exc:
                note(f"llmos-ctl: the model is held no more: {exc.message}")

        self._thread = threading.Thread(target=follow, name="hold", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Let go."""
        self._done.set()
        if self._call is not None:
            self._call.cancel()
        if self._thread is not None:
            self._thread.join(5)

    def __enter__(self) -> ModelHold:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Let go."""
        self.end()
