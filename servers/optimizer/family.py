"""Jobs of a job: what a pipeline or a search submitted ends, rests and goes on with it.

They are known by their request ids, which begin with the id of the job that submitted them. So
nothing depends on that job's process, which may have been killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.servers.optimizer.entry import Entry


def children(entries: Iterable[Entry], id: str) -> list[Entry]:
    """Return those of a job's jobs that have not ended, oldest first."""
    return [e for e in entries if e.record.request_id.startswith(f"{id}/") and not e.ended]


def orphaned(entry: Entry, entries: Mapping[str, Entry]) -> bool:
    """Say whether the job that submitted this one has ended, so that nobody waits for it."""
    parent = entries.get(entry.record.request_id.partition("/")[0])
    return parent is not None and parent is not entry and parent.ended and not entry.ended


def resting(entry: Entry, entries: Mapping[str, Entry]) -> bool:
    """Say whether the job that submitted this one is paused, so that this one waits with it."""
    parent = entries.get(entry.record.request_id.partition("/")[0])
    return parent is not None and parent is not entry and parent.paused


def stop(entry: Entry) -> None:
    """Cancel a job: at once where it has no process, else its supervisor ends that first."""
    if entry.job.state == jobs_pb2.JOB_STATE_QUEUED or entry.paused:
        entry.end(jobs_pb2.JOB_STATE_CANCELLED)
    elif not entry.ended:
        entry.record.cancelling = True
        entry.save()
