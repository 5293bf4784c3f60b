"""What the core needs from others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

Need = tuple[str, str]  # a version, and who needs it


@dataclass(frozen=True)
class Source:
    """A version that a job starts from."""

    ref: str  # `name@version`
    format: str  # `gguf`, `safetensors` or `onnx`; "" when not known
    task: str  # `generate`, `embed` or `predict`; "" when not known


class Catalog(Protocol):
    """Storage."""

    async def find(self, ref: str) -> Source:
        """Return the version that `ref` means.

        Raises NotFound NO_SUCH_MODEL, NO_SUCH_VERSION, NO_SUCH_ALIAS.
        """

    async def find_dataset(self, ref: str) -> str:
        """Return the data set version that `ref` means, `name@version`.

        Raises NotFound NO_SUCH_DATASET, NO_SUCH_VERSION.
        """

    async def keep(self, place: str, needed: Callable[[], Iterable[Need]]) -> None:
        """Keep these versions from being deleted, for ever; data sets are `dataset:REF`.

        place: where the jobs are kept, for people.
        """

    async def settle(self) -> None:
        """Let go of what is no longer needed: whoever wants to delete it now may."""

    def changed(self) -> None:
        """Look soon at what is needed."""
