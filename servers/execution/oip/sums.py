"""Statistics of a version that several workers serve."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.api.inference import open_inference_pb2 as pb

_DURATIONS = tuple(field.name for field in pb.InferStatistics.DESCRIPTOR.fields)
_BATCH_DURATIONS = ("compute_input", "compute_infer", "compute_output")


def total(found: Sequence[pb.ModelStatistics]) -> pb.ModelStatistics:
    """Return the sum of what a version's workers say of themselves; at least one does."""
    answer = pb.ModelStatistics()
    answer.CopyFrom(found[0])
    batches = {batch.batch_size: batch for batch in answer.batch_stats}
    for other in found[1:]:
        answer.last_inference = max(answer.last_inference, other.last_inference)
        answer.inference_count += other.inference_count
        answer.execution_count += other.execution_count
        for name in _DURATIONS:
            _add(getattr(answer.inference_stats, name), getattr(other.inference_stats, name))
        for batch in other.batch_stats:
            known = batches.get(batch.batch_size)
            if known is None:
                known = batches[batch.batch_size] = answer.batch_stats.add(
                    batch_size=batch.batch_size
                )
            for name in _BATCH_DURATIONS:
                _add(getattr(known, name), getattr(batch, name))
    ordered = sorted(answer.batch_stats, key=lambda batch: batch.batch_size)
    del answer.batch_stats[:]
    answer.batch_stats.extend(ordered)
    return answer


def _add(to: pb.StatisticDuration, more: pb.StatisticDuration) -> None:
    to.count += more.count
    to.ns += more.ns
