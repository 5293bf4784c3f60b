"""The epsilon that all jobs together may spend on a data set version, as a document in storage."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

import grpc

from llmos.api.storage.v1 import state_pb2 as pb
from llmos.api.storage.v1 import state_pb2_grpc
from llmos.lib.errors import Aborted, NotFound, ResourceExhausted
from llmos.servers.optimizer.job.storage import patiently

EPSILON = 10.0  # of a data set version for which nobody has set another
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Budget:
    """What may be spent, and what was: a job's planned epsilon until it ends, then its real one."""

    epsilon: float
    jobs: dict[str, float]

    @property
    def spent(self) -> float:
        """Return the sum: epsilons of jobs on the same rows add up (basic composition)."""
        return sum(self.jobs.values())


class Budgets:
    """Reads and changes budgets, by compare-and-set."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """channel: to storage."""
        self._documents: state_pb2_grpc.DocumentsAsyncStub = state_pb2_grpc.DocumentsStub(channel)

    async def get(self, dataset: str) -> Budget:
        """Return the budget of a data set version, `name@version`."""
        return (await self._read(dataset))[0]

    async def allow(self, dataset: str, epsilon: float) -> Budget:
        """Set what may be spent; what was spent stays."""
        while True:
            now, revision = await self._read(dataset)
            if await self._write(dataset, Budget(epsilon, now.jobs), revision):
                return Budget(epsilon, now.jobs)

    async def reserve(self, dataset: str, job: str, epsilon: float) -> None:
        """Set epsilon aside for a job; once, however often it is called for that job.

        Raises ResourceExhausted PRIVACY_BUDGET_EXHAUSTED.
        """
        while True:
            now, revision = await self._read(dataset)
            if job in now.jobs:
                return
            left = now.epsilon - now.spent
            if epsilon > left * (1 + 1e-9):
                raise ResourceExhausted(
                    "PRIVACY_BUDGET_EXHAUSTED",
                    f"The job would spend epsilon {epsilon:.4g} of {dataset}, and "
                    f"{max(left, 0):.4g} of {now.epsilon:.4g} is left; ask for less, or "
                    "raise the budget.",
                )
            if await self._write(
                dataset, Budget(now.epsilon, {**now.jobs, job: epsilon}), revision
            ):
                return

    async def settle(self, dataset: str, job: str, epsilon: float) -> None:
        """Say what a job has really spent; the rest of what was set aside is free again."""
        while True:
            now, revision = await self._read(dataset)
            if await self._write(
                dataset, Budget(now.epsilon, {**now.jobs, job: epsilon}), revision
            ):
                return

    async def _read(self, dataset: str) -> tuple[Budget, int]:
        async def call() -> Any:
            return await self._documents.GetDocument(
                pb.GetDocumentRequest(key=_key(dataset)), timeout=_TIMEOUT_S
            )

        try:
            found = (await patiently(call)).document
        except NotFound:
            return Budget(EPSILON, {}), 0
        value = json.loads(found.value)
        return Budget(value["epsilon"], value["jobs"]), found.mod_revision

    async def _write(self, dataset: str, budget: Budget, revision: int) -> bool:
        """Write if nobody else has since `revision`; say whether it was done."""
        value = json.dumps({"epsilon": budget.epsilon, "jobs": budget.jobs}).encode()
        request = pb.PutDocumentRequest(
            key=_key(dataset),
            value=value,
            content_type="application/json",
            if_mod_revision=revision,
            request_id=uuid.uuid4().hex,
        )

        async def call() -> Any:
            return await self._documents.PutDocument(request, timeout=_TIMEOUT_S)

        try:
            await patiently(call)
        except Aborted:
            return False
        return True


def _key(dataset: str) -> str:
    return f"optimizer/privacy/{dataset}"
