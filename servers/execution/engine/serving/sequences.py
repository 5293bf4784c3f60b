"""State that a model keeps between the calls of a sequence.

It lives in the worker: when that dies, the sequence is gone, and its next call is told so
(NO_SUCH_SEQUENCE) instead of going on with a wrong state.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.lib.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from llmos.servers.execution.engine.base import SequenceCall
from llmos.servers.execution.engine.serving.config import SequenceConfig

Array = npt.NDArray[Any]


@dataclass
class State:
    """One open sequence. Its calls run one after the other, in the order of their arrival."""

    tensors: dict[str, Array]  # by input name, batch axis included
    carried: dict[str, Array] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    used: float = field(default_factory=time.monotonic)


class Sequences:
    """The open sequences of one model, by tenant and id. For one event loop."""

    def __init__(self, ref: str, config: SequenceConfig) -> None:
        """Start with none."""
        self._ref = ref
        self._config = config
        self._open: dict[tuple[str, int], State] = {}

    def enter(self, tenant: str, call: SequenceCall) -> State:
        """Return the state for a call; a first call starts it anew.

        Raises FailedPrecondition NO_SUCH_SEQUENCE; ResourceExhausted TOO_MANY_SEQUENCES.
        """
        key = (tenant, call.id)
        now = time.monotonic()
        if call.start:
            self._drop_idle(now)
            if key not in self._open and len(self._open) >= self._config.max:
                raise ResourceExhausted(
                    "TOO_MANY_SEQUENCES",
                    f"{len(self._open)} sequences of {self._ref} are open, as many as may be; end "
                    "some, or raise sequence.max in its serving.toml.",
                    retry_after_s=1.0,
                )
            self._open[key] = self.fresh()
        state = self._open.get(key)
        if state is None or (now - state.used > self._config.idle_s and not state.lock.locked()):
            self._open.pop(key, None)
            raise FailedPrecondition(
                "NO_SUCH_SEQUENCE",
                f"Sequence {call.id} of {self._ref} is not open: it was never started, was idle "
                f"for over {self._config.idle_s:g} s, or its worker died; start it again.",
            )
        state.used = now
        return state

    def leave(self, tenant: str, call: SequenceCall, state: State) -> None:
        """Drop the state after a last call."""
        state.used = time.monotonic()
        if call.end and self._open.get((tenant, call.id)) is state:
            del self._open[(tenant, call.id)]

    def fresh(self) -> State:
        """Return a state of zeros."""
        tensors = {}
        for one in self._config.state:
            shape = [*one.shape[: one.axis], 1, *one.shape[one.axis :]]
            tensors[one.input] = np.zeros(shape, one.dtype)
        return State(tensors)

    def before(self, state: State, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return a call's inputs with the state, and what is carried over, in them.

        Raises InvalidArgument BAD_TENSOR when they do not fit what came before.
        """
        feeds = dict(inputs)
        for name, count in self._config.carry.items():
            given = feeds.get(name)
            if given is None:
                continue
            earlier = state.carried.get(name)
            if earlier is None:
                earlier = np.zeros((*given.shape[:-1], count), given.dtype)
            if earlier.dtype != given.dtype or earlier.shape[:-1] != given.shape[:-1]:
                raise InvalidArgument(
                    "BAD_TENSOR",
                    f"Tensor {name!r} is {given.dtype} of shape {list(given.shape)}; the sequence "
                    f"so far had {earlier.dtype} and {list(earlier.shape[:-1])} before the last.",
                )
            feeds[name] = np.concatenate([earlier, given], axis=-1)
            state.carried[name] = feeds[name][..., feeds[name].shape[-1] - count :].copy()
        return feeds | state.tensors

    def after(self, state: State, results: Mapping[str, Array]) -> dict[str, Array]:
        """Keep the new state; return the other outputs."""
        answers = dict(results)
        for one in self._config.state:
            state.tensors[one.input] = answers.pop(one.output)
        return answers

    def _drop_idle(self, now: float) -> None:
        old = [k for k, s in self._open.items() if now - s.used > self._config.idle_s]
        for key in old:
            if not self._open[key].lock.locked():
                del self._open[key]
