"""The steps of one version around its model: which run, and what goes in and comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from llmos.lib.errors import InvalidArgument
from llmos.servers.execution.engine.base import TensorSpec
from llmos.servers.execution.engine.serving.config import Serving, bad
from llmos.servers.execution.engine.serving.steps import Step, make
from llmos.servers.execution.engine.serving.steps.options import Options
from llmos.servers.execution.engine.serving.steps.vectors import Labels

Array = npt.NDArray[Any]


class Chain:
    """Steps before and after a model. Those before run when their input is given.

    So a text encoder takes text, or tokens from who has made them already.
    """

    def __init__(
        self,
        serving: Serving,
        files: Mapping[str, Path],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        metadata: Mapping[str, str],
    ) -> None:
        """Make the steps around a model with these tensors.

        Raises Unavailable LOAD_FAILED, FailedPrecondition MISSING_EXTRA.
        """

        def step(table: Mapping[str, Any]) -> Step:
            return make(table, Options(table, files, bad, metadata))

        self.before = [step(table) for table in serving.before]
        self.after = [step(table) for table in serving.after]
        self._model_inputs = [i for i in inputs if i.name not in _hidden_inputs(serving)]
        hidden = {s.output for s in serving.sequence.state} if serving.sequence else set()
        self._model_outputs = [o for o in outputs if o.name not in hidden]
        self._check(inputs, outputs)

    def _check(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        known = {o.name for o in outputs} | {i.name for i in inputs}
        known |= {g.name for s in self.before for g in s.gives}
        for step in self.after:
            for taken in step.takes:
                if taken.name not in known:
                    raise bad(
                        f"a step takes {taken.name!r}, which neither the model nor a step before "
                        f"it gives; there are {', '.join(sorted(known))}"
                    )
            known |= {g.name for g in step.gives}
        wanted = {i.name for i in inputs}
        for step in self.before:
            if not wanted & {g.name for g in step.gives}:
                given = ", ".join(g.name for g in step.gives)
                raise bad(f"a step gives {given}, none of which the model takes")

    @property
    def inputs(self) -> list[TensorSpec]:
        """Return what a request has: what steps take, and what the model takes beside."""
        made = {g.name for s in self.before for g in s.gives}
        taken = [t for s in self.before for t in s.takes if t.name not in made]
        return [*taken, *(i for i in self._model_inputs if i.name not in made)]

    @property
    def outputs(self) -> list[TensorSpec]:
        """Return what an answer has: what no step has taken, and scores that were only named."""
        named = {s.input for s in self.after if isinstance(s, Labels)}
        taken = {t.name for s in self.after for t in s.takes} - named
        given = [g for s in self.after for g in s.gives]
        return [o for o in (*self._model_outputs, *given) if o.name not in taken]

    def prepare(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Run the steps before the model whose input is there; blocks."""
        values = dict(tensors)
        for step in self.before:
            if all(taken.name in values for taken in step.takes):
                values |= step(values)
                for taken in step.takes:
                    del values[taken.name]
        wanted = {i.name for i in self._model_inputs}
        extra = {g.name for s in self.before for g in s.gives} - wanted
        return {name: value for name, value in values.items() if name not in extra}

    def finish(self, values: dict[str, Array]) -> dict[str, Array]:
        """Run the steps after the model; blocks. `values` has its inputs and outputs."""
        for step in self.after:
            values |= step(values)
        return values

    def needs(self, outputs: Sequence[str]) -> list[str]:
        """Return the outputs of the model that the wanted ones are made of; [] = all.

        Raises InvalidArgument BAD_TENSOR for one that is not known.
        """
        if not outputs:
            return []
        of_model = [o.name for o in self._model_outputs]
        made = {g.name: step for step in self.after for g in step.gives}
        needed: set[str] = set()
        queue = list(outputs)
        while queue:
            name = queue.pop()
            if name in of_model:
                needed.add(name)
            elif name in made:
                queue += [t.name for t in made[name].takes if t.name in made or t.name in of_model]
            else:
                known = ", ".join(repr(n) for n in dict.fromkeys([*of_model, *made]))
                raise InvalidArgument(
                    "BAD_TENSOR", f"The model gives no tensor {name!r}; it gives {known}."
                )
        return [name for name in of_model if name in needed]

    def labels(self) -> Labels | None:
        """Return the step that names classes, when there is one."""
        return next((s for s in self.after if isinstance(s, Labels)), None)


def _hidden_inputs(serving: Serving) -> set[str]:
    hidden = set(serving.constants)
    if serving.sequence is not None:
        hidden |= {s.input for s in serving.sequence.state}
    return hidden
