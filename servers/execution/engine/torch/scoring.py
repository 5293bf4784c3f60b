"""How likely the tokens of a prompt were: reads what its own logits say of each next token."""

from __future__ import annotations

from collections.abc import Sequence as Listing

from torch import Tensor

from llmos.servers.execution.engine.base import TokenLogprob
from llmos.servers.execution.engine.torch.sequence import Sequence


def score(logits: Tensor, scored: Listing[tuple[Sequence, range]]) -> None:
    """Add to the scores of sequences; `logits` has a row for each of the positions given."""
    at = 0
    for sequence, positions in scored:
        count = sequence.plan.sampler.logprobs or 0
        assert sequence.scores is not None
        lines = logits[at : at + len(positions)].log_softmax(-1)
        at += len(positions)
        top = lines.topk(count)
        following = [sequence.tokens[position + 1] for position in positions]
        chosen = [float(line[token]) for line, token in zip(lines, following, strict=True)]
        for token, own, ids, values in zip(
            following, chosen, top.indices.tolist(), top.values.tolist(), strict=True
        ):
            likeliest = list(zip(ids, values, strict=True))
            sequence.scores.append(TokenLogprob(token, own, likeliest))
