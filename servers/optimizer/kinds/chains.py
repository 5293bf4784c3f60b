"""The kinds pipeline and search as the server knows them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from llmos.api.optimizer.v1 import jobs_pb2 as pb
from llmos.servers.optimizer.job.chains.specs import FIELDS, with_source
from llmos.servers.optimizer.kinds.base import Kind, Needs, bad, check_range, check_ref
from llmos.servers.optimizer.kinds.compress import check_gates
from llmos.servers.optimizer.kinds.evaluate import PACKAGES, check_settings

_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_MOST_STEPS, _MOST_TRIALS, _MOST_OBJECTIVES = 16, 500, 4
_ANY = "a@1"  # stands for what the step before makes


def chains(kinds: Mapping[str, Kind]) -> dict[str, Kind]:
    """Return both kinds; steps are checked by those given."""
    pipeline = Kind(
        lambda spec: _check_pipeline(spec, kinds),
        "llmos.servers.optimizer.job.chains.pipeline:Pipeline",
        orchestrates=True,
    )
    search = Kind(
        lambda spec: _check_search(spec, kinds),
        "llmos.servers.optimizer.job.chains.search:Search",
        (*PACKAGES, "optuna"),
        orchestrates=True,
    )
    return {"pipeline": pipeline, "search": search}


def _check_pipeline(spec: pb.Pipeline, kinds: Mapping[str, Kind]) -> Needs:
    if not 1 <= len(spec.steps) <= _MOST_STEPS:
        raise bad(f"pipeline.steps has {len(spec.steps)} steps; it must have 1 to {_MOST_STEPS}.")
    trains = spec.steps[0].WhichOneof("kind") == "train"
    if spec.model or not trains:
        check_ref("pipeline.model", spec.model)
    datasets: list[str] = []
    for index, step in enumerate(spec.steps):
        field = f"pipeline.steps[{index}]"
        if index and step.WhichOneof("kind") == "train":
            raise bad(f"{field} trains from scratch; only the first step can.")
        datasets += _check_step(field, step, kinds)
    if spec.HasField("promotion"):
        promotion = spec.promotion
        _check_alias("pipeline.promotion.alias", promotion.alias)
        if promotion.canary:
            _check_alias("pipeline.promotion.canary", promotion.canary)
        check_gates("pipeline.promotion.gates", promotion.gates)
        check_range("pipeline.promotion.watch_s", promotion.watch_s, 0, 86_400)
        check_range("pipeline.promotion.max_failed", promotion.max_failed, 0, 1)
        for name in ("max_p99_ms", "max_slowdown"):
            check_range(f"pipeline.promotion.{name}", getattr(promotion, name), 0, 1e9)
            if getattr(promotion, name) and not promotion.watch_s:
                raise bad(f"pipeline.promotion.{name} needs watch_s: say how long to watch calls.")
    return Needs([spec.model] if spec.model else [], list(dict.fromkeys(datasets)))


def _check_step(field: str, step: pb.JobSpec, kinds: Mapping[str, Kind]) -> list[str]:
    """Return the data sets of a step. Raises BAD_SPEC naming it."""
    name = step.WhichOneof("kind") or ""
    if name not in kinds:
        raise bad(f"{field} has the kind {name or 'none'!r}; set one of {', '.join(kinds)}.")
    given = FIELDS.get(name, "model")
    if given and getattr(getattr(step, name), given):
        raise bad(f"{field}.{name}.{given} is set; it comes from the step before: leave it empty.")
    checked = with_source(step, _ANY, _ANY)
    check: Callable[[Any], Needs] = kinds[name].check
    return _within(field, lambda: list(check(getattr(checked, name)).datasets))


def _within(field: str, check: Callable[[], list[str]]) -> list[str]:
    from llmos.lib.errors import InvalidArgument

    try:
        return check()
    except InvalidArgument as exc:
        raise bad(f"{field}: {exc.message}") from exc


def _check_search(spec: pb.Search, kinds: Mapping[str, Kind]) -> Needs:
    check_ref("search.model", spec.model)
    if not spec.choices:
        raise bad("search.choices is empty; name at least one step with its options.")
    names = [choice.name for choice in spec.choices]
    if len(set(names)) != len(names) or "" in names:
        raise bad("search.choices: each needs a name of its own.")
    datasets: list[str] = []
    for choice in spec.choices:
        if not choice.options:
            raise bad(f"search.choices: {choice.name} has no options.")
        for index, option in enumerate(choice.options):
            if option.WhichOneof("kind"):
                field = f"search.choices.{choice.name}[{index}]"
                if option.WhichOneof("kind") == "train":
                    raise bad(f"{field} trains from scratch; a search starts from a model.")
                datasets += _check_step(field, option, kinds)
    if spec.evaluate.models:
        raise bad("search.evaluate.models is set; each trial's version comes there: leave it out.")
    datasets += check_settings("search.evaluate", spec.evaluate)
    check_gates("search.gates", spec.gates)
    objectives = set(spec.objectives) or {gate.measure for gate in spec.gates}
    if not 1 <= len(objectives) <= _MOST_OBJECTIVES:
        raise bad(f"search.objectives has {len(objectives)}; name 1 to {_MOST_OBJECTIVES}.")
    if spec.trials > _MOST_TRIALS:
        raise bad(f"search.trials is {spec.trials}; at most {_MOST_TRIALS}.")
    if spec.alias:
        _check_alias("search.alias", spec.alias)
    return Needs([spec.model], list(dict.fromkeys(datasets)))


def _check_alias(field: str, alias: str) -> None:
    if not _ALIAS.fullmatch(alias):
        raise bad(f"{field} is {alias[:60]!r}; it must begin with a letter, e.g. prod.")
