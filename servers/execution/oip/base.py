"""The part of the protocol that a process does not serve: refuses with what serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from llmos.api.inference import open_inference_pb2_grpc
from llmos.lib.errors import Unimplemented


class Refusing(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Raises Unimplemented WRONG_SERVER in every method; override what is served.

    Behind the kernel nobody sees it: keyed methods go to workers, the others to the manager.
    """

    def _refuse(self) -> Any:
        raise Unimplemented(
            "WRONG_SERVER",
            "This process does not serve this method; call it through the kernel, which finds the "
            "one that does.",
        )

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def LogSettings(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def TraceSetting(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def SystemSharedMemoryStatus(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        """Refuse."""
        self._refuse()

    async def ModelStreamInfer(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        """Refuse."""
        self._refuse()
        yield
