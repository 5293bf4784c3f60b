"""The work of the kind pipeline: one job after another, then aliases."""

from __future__ import annotations

from llmos.api.optimizer.v1 import jobs_pb2 as pb
from llmos.api.optimizer.v1 import process_pb2
from llmos.lib.errors import FailedPrecondition
from llmos.servers.optimizer.job import figures
from llmos.servers.optimizer.job.chains import children, specs
from llmos.servers.optimizer.job.chains.promotion import Promoter
from llmos.servers.optimizer.job.context import JobContext


class Pipeline:
    """One run. Steps have request ids of their places, so each is done once."""

    def __init__(self, context: JobContext) -> None:
        """Prepare."""
        self._context = context
        self._spec: pb.Pipeline = context.spec

    async def run(self) -> None:
        """Do it. Raises Aborted STEP_FAILED, FailedPrecondition GATE_CLOSED, ROLLED_BACK."""
        context, steps = self._context, self._spec.steps
        jobs = children.Children(context)
        original = context.launch.sources[0] if context.launch.sources else ""
        model, before, after = original, dict[str, float](), dict[str, float]()
        for index, spec in enumerate(steps):
            kind = (spec.WhichOneof("kind") or "").replace("_", "-")
            context.tell(f"step {index + 1} of {len(steps)}: {kind}", 0.9 * index / len(steps))
            step = specs.with_source(spec, model, original or model)
            job = await jobs.run(f"step-{index + 1}", step)
            self._take(job, kind, index)
            children.succeeded(job, f"Step {index + 1}, {kind},")
            first, last = children.figures(job)
            before, after = {**before, **first}, {**after, **last}
            if job.results:
                model = job.results[-1]
                original = original or model
        if self._spec.HasField("promotion"):
            if why := figures.closed(self._spec.promotion.gates, after, before):
                raise FailedPrecondition(
                    "GATE_CLOSED", f"{model} was made, and no alias was moved: {why}."
                )
            await Promoter(context, self._spec.promotion).run(model)

    def _take(self, job: pb.Job, kind: str, index: int) -> None:
        """Tell what a step registered and measured as ours."""
        for result in job.results:
            self._context.report.send(process_pb2.JobProgress(result=result))
        for found in job.comparisons:
            found.label = f"{index + 1} {kind}: {found.label}"
            self._context.compared(found)
