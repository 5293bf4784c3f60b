"""The privacy that private training has spent of a data set version."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos.clients.ctl.dataset import Ref, app
from llmos.clients.ctl.output import as_value
from llmos.clients.ctl.session import QUICK_S, Session, command

_BUDGET = ["llmos-ctl dataset budget mails", "llmos-ctl dataset budget mails@2 --set 4"]


@command(app, examples=_BUDGET)
def budget(
    session: Session,
    ref: Ref,
    epsilon: Annotated[
        float | None,
        typer.Option("--set", min=0, help="What all jobs together may spend.", show_default=False),
    ] = None,
) -> None:
    """Show the privacy that jobs have spent of a data set version, and what is left of it.

    Jobs with --epsilon set it aside before their first step, and are refused when too little is
    left. Another version of the data has a budget of its own.
    """
    from llmos.api.optimizer.v1 import privacy_pb2 as pb
    from llmos.api.optimizer.v1 import privacy_pb2_grpc

    stub = session.kernel(privacy_pb2_grpc.PrivacyBudgetsStub)
    limit = session.limit(QUICK_S)
    if epsilon is None:
        found = stub.GetPrivacyBudget(pb.GetPrivacyBudgetRequest(dataset=ref), timeout=limit).budget
    else:
        request = pb.SetPrivacyBudgetRequest(dataset=ref, epsilon=epsilon)
        found = stub.SetPrivacyBudget(request, timeout=limit).budget
    left = max(0.0, found.epsilon - found.spent)
    rows = [[one.job, f"{one.epsilon:.4g}"] for one in found.jobs]
    rows += [["spent", f"{found.spent:.4g}"], ["left", f"{left:.4g} of {found.epsilon:.4g}"]]
    session.out.rows([found.dataset.upper(), "EPSILON"], rows, {**as_value(found), "left": left})
