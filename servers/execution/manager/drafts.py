"""The models that guess for others: found in storage when a version that names one is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmos.api.execution.v1 import zygote_pb2 as pb
from llmos.lib.errors import FailedPrecondition, InvalidArgument, NotFound
from llmos.servers.execution.engine.select import engine_for
from llmos.servers.execution.engine.serving.declared import draft
from llmos.servers.execution.manager.model import Ref, Version
from llmos.servers.execution.manager.options import Options
from llmos.servers.execution.manager.seams import Catalog


async def draft_model(
    catalog: Catalog, version: Version, files: Mapping[str, Path], options: Options
) -> pb.DraftModel | None:
    """Return what guesses for `version` as it or who loads it says; None when neither does.

    Raises FailedPrecondition BAD_DRAFT when it is not there or is no language model.
    """
    name = draft(files, dict(options.serving))
    if not name or engine_for(version.format, version.task) != "torch":
        return None
    try:
        Ref.parse(name)
        found = await catalog.resolve(name)
    except (InvalidArgument, NotFound) as exc:
        raise _bad(version, name, exc.message) from exc
    if found.adapter or engine_for(found.format, found.task) != "torch":
        raise _bad(version, found.ref, "It is no causal language model.")
    own = await catalog.fetch(found)
    return pb.DraftModel(
        ref=found.ref,
        format=found.format,
        files=worker_files(found, own),
        context_length=found.context_length,
    )


def worker_files(version: Version, files: Mapping[str, Path]) -> list[pb.WorkerFile]:
    """Return the files of a version as a worker gets them."""
    sums = {file.name: file.sha256 for file in version.files}
    return [pb.WorkerFile(name=n, path=str(p), sha256=sums.get(n, "")) for n, p in files.items()]


def _bad(version: Version, name: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        "BAD_DRAFT",
        f"{version.ref} names {name[:80]!r} as its draft model, which cannot guess for it: {why} "
        "Import it, or name another or none (--set generate.draft=).",
    )
