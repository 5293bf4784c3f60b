"""The PrivacyBudgets service: budgets of data set versions, which private training draws on."""

from __future__ import annotations

import math
from typing import Any

from llmos.api.optimizer.v1 import privacy_pb2 as pb
from llmos.api.optimizer.v1 import privacy_pb2_grpc
from llmos.lib.errors import InvalidArgument
from llmos.servers.optimizer.seams import Catalog
from llmos.servers.optimizer.train.budget import Budget, Budgets


class PrivacyService(privacy_pb2_grpc.PrivacyBudgetsServicer):
    """Serves what storage keeps."""

    def __init__(self, catalog: Catalog, budgets: Budgets) -> None:
        """catalog: finds the version that a name means."""
        self._catalog, self._budgets = catalog, budgets

    async def GetPrivacyBudget(
        self, request: pb.GetPrivacyBudgetRequest, context: Any
    ) -> pb.GetPrivacyBudgetResponse:
        """Return a budget."""
        ref = await self._catalog.find_dataset(request.dataset)
        return pb.GetPrivacyBudgetResponse(budget=_told(ref, await self._budgets.get(ref)))

    async def SetPrivacyBudget(
        self, request: pb.SetPrivacyBudgetRequest, context: Any
    ) -> pb.SetPrivacyBudgetResponse:
        """Set what may be spent."""
        epsilon = request.epsilon
        if not (math.isfinite(epsilon) and epsilon >= 0):
            raise InvalidArgument(
                "BAD_BUDGET", f"A budget of epsilon {epsilon} is none; give a number from 0."
            )
        ref = await self._catalog.find_dataset(request.dataset)
        found = await self._budgets.allow(ref, epsilon)
        return pb.SetPrivacyBudgetResponse(budget=_told(ref, found))


def _told(ref: str, budget: Budget) -> pb.PrivacyBudget:
    jobs = [pb.PrivacySpent(job=job, epsilon=spent) for job, spent in sorted(budget.jobs.items())]
    return pb.PrivacyBudget(dataset=ref, epsilon=budget.epsilon, spent=budget.spent, jobs=jobs)
