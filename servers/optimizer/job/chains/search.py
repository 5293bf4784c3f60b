"""The work of the kind search: trials by Optuna's TPE, each a pipeline job; the Pareto front."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import grpc
import optuna

from llmos.api.optimizer.v1 import evaluate_pb2, jobs_pb2, measure_pb2
from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc
from llmos.lib.errors import FailedPrecondition
from llmos.lib.rpc import from_rpc_error
from llmos.servers.optimizer.job import figures
from llmos.servers.optimizer.job.chains import children, front
from llmos.servers.optimizer.job.chains.promotion import Promoter
from llmos.servers.optimizer.job.context import JobContext
from llmos.servers.optimizer.job.evaluate import report

TRIALS = 16
_ARTIFACT = "trials.json"


class Search:
    """One run. The sampler is fed the same trials again after a restart, whose jobs are known."""

    def __init__(self, context: JobContext) -> None:
        """Prepare."""
        self._context = context
        self._spec: jobs_pb2.Search = context.spec
        self._objectives = list(self._spec.objectives) or list(
            dict.fromkeys(gate.measure for gate in self._spec.gates)
        )
        self._made: list[str] = []
        self._original: dict[str, float] = {}
        self._rows = 0  # that a trial was measured on

    async def run(self) -> None:
        """Do it. Raises FailedPrecondition GATE_CLOSED when no trial holds, OBJECTIVE_MISSING."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        ways = ["minimize" if figures.lower_is_better(n) else "maximize" for n in self._objectives]
        study = optuna.create_study(
            directions=ways, sampler=optuna.samplers.TPESampler(seed=self._spec.seed)
        )
        jobs = children.Children(self._context)
        count = self._spec.trials or TRIALS
        known: dict[tuple[int, ...], jobs_pb2.Job] = {}
        trials: list[dict[str, Any]] = []
        for index in range(count):
            trial = study.ask()
            taken = tuple(
                trial.suggest_categorical(choice.name, list(range(len(choice.options))))
                for choice in self._spec.choices
            )
            self._context.tell(f"trial {index + 1} of {count}", 0.9 * index / count)
            if taken not in known:  # the same again would measure the same
                known[taken] = await jobs.run(f"trial-{len(known) + 1}", self._pipeline(taken))
            trials.append(self._took(index, taken, known[taken]))
            values = [trials[-1]["figures"].get(name, math.nan) for name in self._objectives]
            if all(math.isfinite(value) for value in values):
                study.tell(trial, values)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            await asyncio.sleep(0)
        await self._finish(trials)

    def _pipeline(self, taken: tuple[int, ...]) -> jobs_pb2.JobSpec:
        chosen = [c.options[i] for c, i in zip(self._spec.choices, taken, strict=True)]
        steps = [option for option in chosen if option.WhichOneof("kind")]
        steps.append(jobs_pb2.JobSpec(evaluate=self._spec.evaluate))
        model = self._context.launch.sources[0]
        return jobs_pb2.JobSpec(pipeline=jobs_pb2.Pipeline(model=model, steps=steps))

    def _took(self, index: int, taken: tuple[int, ...], job: jobs_pb2.Job) -> dict[str, Any]:
        """Return what is known of a trial; one that failed has no figures."""
        self._made += [ref for ref in job.results if ref not in self._made]
        ended = job.state == jobs_pb2.JOB_STATE_SUCCEEDED
        measured = [c for c in job.comparisons if "evaluate: " in c.label] if ended else []
        values = [{m.name: m.value for m in c.measures} for c in measured]
        if values:
            self._original = self._original or values[0]
            self._rows = measured[0].texts
        found = values[-1] if values else {}
        why = figures.closed(self._spec.gates, found, values[0]) if values else job.error
        source = self._context.launch.sources[0]
        return {
            "trial": index + 1,
            "job": job.id,
            "choices": {
                choice.name: (choice.options[i].WhichOneof("kind") or "none") + f"[{i}]"
                for choice, i in zip(self._spec.choices, taken, strict=True)
            },
            "ref": job.results[-1] if job.results else source,
            "made": list(job.results),
            "figures": found,
            "holds": not why,
            "why": why,
        }

    def _front(self, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the trials that hold and that none beats in all objectives, the best first."""

        def better(a: dict[str, Any], b: dict[str, Any]) -> bool:
            pairs = [
                (a["figures"][n], b["figures"][n], figures.lower_is_better(n))
                for n in self._objectives
            ]
            as_good = all(x <= y if lower else x >= y for x, y, lower in pairs)
            return as_good and any(x != y for x, y, _ in pairs)

        able = {
            trial["ref"]: trial
            for trial in trials
            if trial["holds"] and set(self._objectives) <= set(trial["figures"])
        }
        best = [t for t in able.values() if not any(better(o, t) for o in able.values())]
        name = self._objectives[0]
        sign = 1 if figures.lower_is_better(name) else -1
        return sorted(best, key=lambda t: sign * float(t["figures"][name]))

    async def _finish(self, trials: list[dict[str, Any]]) -> None:
        measured = [t for t in trials if t["figures"]]
        missing = set(self._objectives) - set(measured[0]["figures"] if measured else ())
        if measured and missing:
            raise FailedPrecondition(
                "OBJECTIVE_MISSING",
                f"search.objectives: {sorted(missing)[0]} was not measured; there are "
                f"{', '.join(sorted(measured[0]['figures']))}.",
            )
        best = self._front(trials)
        for trial in trials:
            trial["front"] = any(trial["ref"] == other["ref"] for other in best)
        await asyncio.to_thread(self._write, trials, best)
        for index, trial in enumerate(best):
            found = figures.comparison(f"front {index + 1}", trial["ref"], trial["figures"], 0)
            self._context.compared(found)
        if not self._spec.keep_all:
            await self._drop({ref for trial in best for ref in trial["made"]})
        if not best:
            reasons = [t["why"] for t in trials if t["why"]]
            raise FailedPrecondition(
                "GATE_CLOSED", f"No trial holds all gates; the last one: {reasons[-1]}."
            )
        if self._spec.alias:
            promotion = jobs_pb2.Promotion(alias=self._spec.alias)
            await Promoter(self._context, promotion).run(best[0]["ref"])

    def _write(self, trials: list[dict[str, Any]], best: list[dict[str, Any]]) -> None:
        folder = self._context.artifacts
        folder.mkdir(exist_ok=True)
        temporary = folder / "tmp-trials"
        temporary.write_text(json.dumps(trials, indent=1))
        temporary.replace(folder / _ARTIFACT)
        found = evaluate_pb2.Report(data=self._spec.evaluate.data.dataset, rows=self._rows)
        rows = [(self._context.launch.sources[0], self._original)]
        rows += [(t["ref"], t["figures"]) for t in best]
        for ref, values in rows:
            found.versions.append(
                evaluate_pb2.Evaluated(
                    ref=ref,
                    measures=[
                        measure_pb2.Measure(name=n, value=v, unit=figures.UNITS.get(n, ""))
                        for n, v in values.items()
                    ],
                )
            )
        report.write(found, folder, front.section(trials, self._objectives))

    async def _drop(self, keep: set[str]) -> None:
        """Delete what trials made and the front has not; newest first, since they are parents."""
        stub: registry_pb2_grpc.RegistryAsyncStub = registry_pb2_grpc.RegistryStub(
            self._context.channel("storage")
        )
        for ref in reversed(self._made):
            if ref in keep:
                continue
            try:
                await stub.DeleteVersion(registry_pb2.DeleteVersionRequest(ref=ref), timeout=60)
            except grpc.RpcError as exc:
                error = from_rpc_error(exc)
                # gone before a restart, or somebody uses it meanwhile: it stays theirs
                if error.reason not in ("NO_SUCH_VERSION", "NO_SUCH_MODEL", "IN_USE"):
                    raise error from exc
