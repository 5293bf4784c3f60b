"""The seam between workers and engines: what an engine must do, free of grpc and protobuf.

A worker process loads exactly one engine for one model version and serves it. Engines raise
`llmos.lib.errors` only, with the reasons listed in execution.proto. Methods are called on the
worker's event loop and must not block it: engines compute on threads of their own.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ModelSpec:
    """One model version as a worker gets it: files on this host, and where to run them."""

    ref: str  # `name@version`
    format: str  # `gguf`, `safetensors` or `onnx`
    task: str  # `generate`, `embed` or `predict`
    files: dict[str, Path]  # name within the version -> read-only file; the main file comes first
    context_length: int = 0  # longest input, tokens; 0 = what the file says
    device: str = "cpu"  # `cpu` or `cuda:0`
    threads: int = 0  # 0 = all cores that this process may use


@dataclass(frozen=True)
class ChatTurn:
    """One message of a chat; role is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class Generation:
    """One request to continue text. Exactly one of prompt, chat and tokens is given.

    resume: tokens that an earlier worker has already delivered for this very request; the engine
    goes on right after them and yields only what follows.
    """

    prompt: str | None = None
    chat: Sequence[ChatTurn] | None = None
    tokens: Sequence[int] | None = None
    max_tokens: int = 0  # 0 = 256 or what the context leaves
    temperature: float = 0.7  # 0 = greedy; 0..2
    top_p: float = 1.0  # (0, 1]
    top_k: int = 0  # 0 = all
    seed: int = 0  # noise at a position is a function of (seed, position)
    stop: Sequence[str] = ()  # at most 16
    resume: Sequence[int] = ()


@dataclass(frozen=True)
class Piece:
    """What one step adds: new tokens and the text that became certain (whole characters only).

    finish is "" while it goes on, else `stop` or `length`. The counts and times (seconds, as in
    Usage of execution.proto) are set in the last piece. prompt_tokens is set in all.
    """

    text: str
    tokens: Sequence[int]
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Embeddings:
    """vectors: float32 [texts, dim], L2-normalised; truncated: indices of texts that were cut."""

    vectors: npt.NDArray[np.float32]
    prompt_tokens: int
    truncated: Sequence[int] = ()


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor of a model: numpy dtype name, shape with -1 for free dimensions."""

    name: str
    dtype: str
    shape: Sequence[int]


@dataclass(frozen=True)
class EngineInfo:
    """What a loaded model is."""

    engine: str  # `torch` or `onnx`
    task: str
    device: str
    dtype: str
    context_length: int = 0
    inputs: Sequence[TensorSpec] = field(default=())
    outputs: Sequence[TensorSpec] = field(default=())


class Engine(abc.ABC):
    """A loaded model. The methods of tasks it does not do raise FailedPrecondition WRONG_TASK."""

    info: EngineInfo

    @abc.abstractmethod
    def generate(self, request: Generation) -> AsyncIterator[Piece]:
        """Continue text. Closing the iterator (aclose, cancel) stops the work at the next step.

        Raises InvalidArgument EMPTY_PROMPT, BAD_SAMPLING, BAD_CHAT; OutOfRange CONTEXT_OVERFLOW.
        """

    @abc.abstractmethod
    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Turn 1..2,048 texts into vectors. Raises InvalidArgument EMPTY_INPUT."""

    @abc.abstractmethod
    async def infer(
        self, inputs: dict[str, npt.NDArray[np.generic]], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.generic]]:
        """Run the bare model on tensors; `outputs` empty = all.

        Raises InvalidArgument BAD_TENSOR naming the tensor and what was expected.
        """

    @abc.abstractmethod
    def tokenize(self, text: str) -> tuple[list[int], list[str]]:
        """Return token ids and their texts."""

    @abc.abstractmethod
    def work(self) -> float:
        """Return a number that grows with every bit of work done, and never by time alone.

        A worker with calls in progress whose number stands still hangs. Any thread may ask.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Stop threads; the engine is not used any more."""
