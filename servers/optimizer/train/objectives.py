"""What is minimised: each objective turns rows into a sum of losses, and counts what it sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Rows = Mapping[str, npt.NDArray[Any]]
IGNORED = -100  # cross_entropy's word for no label


class Objective(Protocol):
    """A loss over rows of a Table."""

    unit: str  # what `count` counts: `rows` or `tokens`

    def count(self, rows: Rows) -> int:
        """Return how many losses the rows have."""

    def loss(self, network: Any, rows: Rows, device: torch.device) -> torch.Tensor:
        """Return the sum of the rows' losses."""


def tensor(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array on a device; integers are 64 bits wide, bytes stay."""
    wide = array.astype(np.int64) if array.dtype == np.int32 else array
    return torch.from_numpy(np.ascontiguousarray(wide)).to(device)


class Regression:
    """Squared error of one number."""

    unit = "rows"

    def count(self, rows: Rows) -> int:
        """Count rows."""
        return len(rows["target"])

    def loss(self, network: Any, rows: Rows, device: torch.device) -> torch.Tensor:
        """Sum squares."""
        out = network(tensor(rows["input"], device)).squeeze(-1).float()
        return F.mse_loss(out, tensor(rows["target"], device), reduction="sum")


class Classes:
    """Cross entropy of classes by numbers or images."""

    unit = "rows"

    def count(self, rows: Rows) -> int:
        """Count rows."""
        return len(rows["target"])

    def loss(self, network: Any, rows: Rows, device: torch.device) -> torch.Tensor:
        """Sum cross entropies."""
        out = network(tensor(rows["input"], device)).float()
        return F.cross_entropy(out, tensor(rows["target"], device), reduction="sum")


class TextClasses:
    """Cross entropy of classes by texts."""

    unit = "rows"

    def count(self, rows: Rows) -> int:
        """Count rows."""
        return len(rows["target"])

    def loss(self, network: Any, rows: Rows, device: torch.device) -> torch.Tensor:
        """Sum cross entropies."""
        out = network(**self.inputs(rows, device)).logits.float()
        return F.cross_entropy(out, tensor(rows["target"], device), reduction="sum")

    def inputs(self, rows: Rows, device: torch.device) -> dict[str, torch.Tensor]:
        """Return what the network takes."""
        return padded(rows, "", device)


class NextToken:
    """Cross entropy of every next token of a block."""

    unit = "tokens"

    def count(self, rows: Rows) -> int:
        """Count tokens to foretell."""
        return int(rows["ids"].shape[0] * (rows["ids"].shape[1] - 1))

    def loss(self, network: Any, rows: Rows, device: torch.device) -> torch.Tensor:
        """Sum cross entropies."""
        ids = tensor(rows["ids"], device)
        out = network(input_ids=ids[:, :-1], use_cache=False).logits.float()
        return F.cross_entropy(out.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")

    def inputs(self, rows: Rows, device: torch.device) -> dict[str, Any]:
        """Return what the network takes."""
        return {"input_ids": tensor(rows["ids"], device)[:, :-1], "use_cache": False}


class Answer:
    """Cross entropy of the tokens of an answer, each with those before it, and of its end."""

    unit = "tokens"

    def count(self, rows: Rows) -> int:
        """Count the answers' tokens with their ends."""
        return int(rows["answer_length"].sum()) + len(rows["answer_length"])

    def loss(self, network: Any, rows: Rows, device: torch.device) -> torch.Tensor:
        """Sum cross entropies. Ids: 1 ends an answer, 2 begins it."""
        answer = padded(rows, "answer_", device)
        ids, mask = answer["input_ids"], answer["attention_mask"]
        begin = torch.full_like(ids[:, :1], 2)
        given = torch.cat([begin, ids], 1)
        wanted = torch.cat([ids, torch.zeros_like(begin)], 1)
        wanted = wanted.scatter(1, mask.sum(1, keepdim=True), 1)
        seen = torch.cat([torch.ones_like(begin), mask], 1)
        out = network(
            **padded(rows, "", device),
            decoder_input_ids=given,
            decoder_attention_mask=seen,
            use_cache=False,
        ).logits.float()
        wanted = wanted.masked_fill(seen == 0, IGNORED)
        return F.cross_entropy(
            out.flatten(0, 1), wanted.flatten(), reduction="sum", ignore_index=IGNORED
        )


class Distillation:
    """A student's distance from a teacher, and from the data (Hinton et al. 2015, eq. 1).

    soft_weight * T^2 * KL(teacher || student at temperature T) + (1 - soft_weight) * cross entropy
    + hidden_weight * mean square difference of the last hidden states.
    """

    def __init__(
        self,
        base: TextClasses | NextToken,
        teacher: Any,
        temperature: float,
        soft_weight: float,
        hidden_weight: float,
    ) -> None:
        """Ask `teacher`, which is not changed; `base` says what goes in and what is right."""
        self.unit = base.unit
        self._base, self._teacher = base, teacher.eval().requires_grad_(False)
        self._t, self._soft, self._hidden = temperature, soft_weight, hidden_weight

    def count(self, rows: Rows) -> int:
        """Count as without a teacher."""
        return self._base.count(rows)

    def loss(self, network: Any, rows: Rows, device: torch.device) -> torch.Tensor:
        """Sum the parts."""
        inputs = self._base.inputs(rows, device)
        deep = self._hidden > 0
        out = network(**inputs, output_hidden_states=deep)
        with torch.no_grad():
            self._teacher.to(device)
            told = self._teacher(**inputs, output_hidden_states=deep)
        logits = out.logits.float().flatten(0, -2)
        soft = F.kl_div(
            F.log_softmax(logits / self._t, -1),
            F.log_softmax(told.logits.float().flatten(0, -2) / self._t, -1),
            log_target=True,
            reduction="sum",
        )
        if isinstance(self._base, NextToken):
            right = tensor(rows["ids"], device)[:, 1:].flatten()
        else:
            right = tensor(rows["target"], device)
        total = self._soft * self._t**2 * soft
        if self._soft < 1:
            total = total + (1 - self._soft) * F.cross_entropy(logits, right, reduction="sum")
        if deep:
            apart = (out.hidden_states[-1].float() - told.hidden_states[-1].float()) ** 2
            total = total + self._hidden * apart.mean() * self.count(rows)
        return total


def by_length(rows: Rows) -> Rows:
    """Return texts in the order of their length: parts of a step then have little padding."""
    if "length" not in rows:
        return rows
    long = rows["length"] + rows.get("answer_length", 0)
    order = np.argsort(long, kind="stable")
    return {name: array[order] for name, array in rows.items()}


def padded(rows: Rows, prefix: str, device: torch.device) -> dict[str, torch.Tensor]:
    """Return ids and mask of texts, as wide as the longest."""
    lengths = rows[f"{prefix}length"]
    width = max(1, int(lengths.max(initial=0)))
    mask = (np.arange(width)[None, :] < lengths[:, None]).astype(np.int64)
    ids = rows[f"{prefix}ids"][:, :width]
    return {"input_ids": tensor(ids, device), "attention_mask": tensor(mask, device)}
