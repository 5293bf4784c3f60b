"""The seam between workers and engines: what an engine must do, free of grpc and protobuf.

A worker process loads exactly one engine for one model version and serves it. Engines raise
`llmos.lib.errors` only, with the reasons listed in execution.proto. Methods are called on the
worker's event loop and must not block it: engines compute on threads of their own.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from llmos.lib.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from llmos.servers.execution.engine.serving.config import Serving
    from llmos.servers.execution.engine.serving.statistics import Statistics


@dataclass(frozen=True)
class ModelSpec:
    """One model version as a worker gets it: files on this host, and where to run them."""

    ref: str  # `name@version`
    format: str  # as Format of registry.proto, e.g. `gguf`, `torch_export`, `python`
    task: str  # `generate`, `embed` or `predict`
    files: dict[str, Path]  # name within the version -> read-only file; the main file comes first
    context_length: int = 0  # longest input, tokens; 0 = what the file says
    device: str = "cpu"  # `cpu` or `cuda:0`
    threads: int = 0  # 0 = all cores that this process may use
    precision: str = ""  # `auto` (or empty), `fp32`, `bf16`, `int8` or `int4`; for causal models
    state_dir: str = ""  # of this LLM OS; for engines that keep files or sockets there
    asked_threads: int = 0  # who loads it asked for so many, whatever the version says; 0 = did not
    changes: Mapping[str, str] = field(default_factory=dict)  # of its serving.toml: see `declared`
    digests: Mapping[str, str] = field(default_factory=dict)  # sha256 of the files, where known
    draft: ModelSpec | None = None  # a smaller one that guesses for it, in the same worker


# Classes of calls, as CallClass of the kernel's port.proto: lower ones come first.
INTERACTIVE, NORMAL, BATCH = 2, 3, 4


@dataclass(frozen=True)
class ChatTurn:
    """One message of a chat; role is `system`, `user`, `assistant` or `tool`.

    tool_calls: what the assistant called, `{"name", "arguments"}` each.
    """

    role: str
    content: str
    tool_calls: Sequence[Mapping[str, Any]] = ()


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
    min_p: float = 0.0  # tokens less likely than this share of the likeliest are cut; 0..1
    repetition_penalty: float = 1.0  # over 0 to 2
    presence_penalty: float = 0.0  # -2..2
    frequency_penalty: float = 0.0  # -2..2
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token -> -100..100
    logprobs: int | None = None  # of the chosen token and so many of the likeliest, 0..20
    json_schema: str | None = None  # at most one of these three: what the text has to match
    regex: str | None = None
    grammar: str | None = None  # Lark-like, as llguidance reads it
    tools: Sequence[Mapping[str, Any]] = ()  # of a chat: functions, as in Chat of execution.proto
    prompt_logprobs: bool = False  # also of the prompt's tokens, when logprobs is given
    speculate: int = 0  # tokens guessed ahead, 0..16: changes the speed, never the tokens; 0: as
    # the version says
    rank: int = NORMAL  # the call's class
    tenant: str = ""  # prefixes are shared within a tenant only
    adapter: str = ""  # `name@version` of one that the engine has been given (see Engine.adapt)


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithms of the model's own probabilities, before any setting changed them."""

    token: int
    logprob: float
    top: Sequence[tuple[int, float]] = ()  # the likeliest tokens, likeliest first


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
    logprobs: Sequence[TokenLogprob] = ()  # one per token, when asked for
    cached_tokens: int = 0  # of the prompt, found in the prefix cache; set in the last piece
    guessed_tokens: int = 0  # ahead, by this worker; set in the last piece
    accepted_tokens: int = 0  # of them; they were right
    prompt_logprobs: Sequence[TokenLogprob] = ()  # with the first token, when asked for


@dataclass(frozen=True)
class Embeddings:
    """vectors: float32 [texts, dim], L2-normalised; truncated: indices of texts that were cut."""

    vectors: npt.NDArray[np.float32]
    prompt_tokens: int
    truncated: Sequence[int] = ()


@dataclass(frozen=True)
class Classes:
    """scores: float32 [items, classes]; names: of the classes, as far as they have some."""

    scores: npt.NDArray[np.float32]
    names: Sequence[str]


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor of a model: numpy dtype name, shape with -1 for free dimensions.

    dtype "" = nothing is known about it. raw: elements are `bytes` (of files), not text; instead
    of them pixels may come as uint8.
    """

    name: str
    dtype: str
    shape: Sequence[int]
    raw: bool = False


@dataclass(frozen=True)
class SequenceCall:
    """One call of a sequence: calls of one id share a model's state, in their order."""

    id: int  # not 0
    start: bool = False
    end: bool = False


@dataclass(frozen=True)
class Prediction:
    """One request on tensors; `outputs` empty = all. tenant: whose cached answers may be given."""

    inputs: dict[str, npt.NDArray[Any]]
    outputs: Sequence[str] = ()
    sequence: SequenceCall | None = None
    tenant: str = ""


@dataclass(frozen=True)
class EngineInfo:
    """What a loaded model is. serving: what its version declares, for engines that read it."""

    engine: str  # `torch`, `onnx`, `module`, `pipeline` or `python`
    task: str
    device: str
    dtype: str
    context_length: int = 0
    inputs: Sequence[TensorSpec] = field(default=())
    outputs: Sequence[TensorSpec] = field(default=())
    serving: Serving | None = None


class Models(Protocol):
    """Other models, for engines that call some."""

    async def predict(
        self, model: str, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[Any]]:
        """Run a model in the name of the call being served. Raises as Execution/Predict."""


class Engine(abc.ABC):
    """A loaded model. The methods of tasks it does not do raise FailedPrecondition WRONG_TASK."""

    info: EngineInfo
    statistics: Statistics | None = None  # for engines that count
    models: Models | None = None  # see connect

    @abc.abstractmethod
    def generate(self, request: Generation) -> AsyncIterator[Piece]:
        """Continue text. Closing the iterator (aclose, cancel) stops the work at the next step.

        Raises InvalidArgument EMPTY_PROMPT, BAD_SAMPLING, BAD_CHAT; OutOfRange CONTEXT_OVERFLOW.
        """

    def adapted(self, ref: str) -> bool:
        """Say whether the adapter is at hand."""
        return False

    async def adapt(self, ref: str, files: Mapping[str, Path]) -> None:
        """Take an adapter to be named in requests; those used longest ago may have to go for it.

        Raises FailedPrecondition WRONG_TASK, BAD_ADAPTER; ResourceExhausted OVER_BUDGET.
        """
        raise FailedPrecondition(
            "WRONG_TASK", f"This model does {self.info.task} and takes no adapters."
        )

    @abc.abstractmethod
    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Turn 1..2,048 texts into vectors. Raises InvalidArgument EMPTY_INPUT."""

    @abc.abstractmethod
    async def infer(
        self, inputs: dict[str, npt.NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[Any]]:
        """Run the bare model on tensors; `outputs` empty = all.

        Raises InvalidArgument BAD_TENSOR naming the tensor and what was expected.
        """

    async def predict(self, request: Prediction) -> dict[str, npt.NDArray[Any]]:
        """Run the model with what its version declares around it.

        Raises as `infer`; InvalidArgument NO_SEQUENCES when the model keeps no state.
        """
        if request.sequence is not None:
            raise InvalidArgument(
                "NO_SEQUENCES", "The model keeps no state between calls; leave the sequence out."
            )
        return await self.infer(request.inputs, request.outputs)

    async def predict_stream(
        self, request: Prediction
    ) -> AsyncIterator[dict[str, npt.NDArray[Any]]]:
        """Run a model that answers a request several times; others answer once."""
        yield await self.predict(request)

    async def classify(self, items: Sequence[str | bytes]) -> Classes:
        """Name what texts (str) or files (bytes) are.

        Raises FailedPrecondition WRONG_TASK when the model has no labels; InvalidArgument
        EMPTY_INPUT, BAD_INPUT.
        """
        raise FailedPrecondition(
            "WRONG_TASK",
            f"The model does not classify: it does {self.info.task}. A classifier is an ONNX or "
            "TorchScript model with a `labels` step in its serving.toml.",
        )

    def connect(self, models: Models) -> None:
        """Take the way to other models; called once, before serving, when there is a kernel."""
        self.models = models

    def labels(self, output: str) -> Sequence[str] | None:
        """Return the names of the classes that an output scores; None when it scores none."""
        return None

    @abc.abstractmethod
    def tokenize(self, text: str) -> tuple[list[int], list[str]]:
        """Return token ids and their texts."""

    def spell(self, token: int) -> str:
        """Return the text of one token; "" when the engine has no tokens."""
        return ""

    @abc.abstractmethod
    def work(self) -> float:
        """Return a number that grows with every bit of work done, and never by time alone.

        A worker with calls in progress whose number stands still hangs. Any thread may ask.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Stop threads; the engine is not used any more."""
