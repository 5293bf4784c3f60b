"""Figures of quality, by scikit-learn, torchmetrics and sacrebleu."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.lib.errors import InvalidArgument
from llmos.servers.optimizer.job.models.subject import Subject

BINS = 15  # of the calibration error


def class_names(subject: Subject, count: int, labels: Sequence[str]) -> list[str]:
    """Return the names of the columns of scores; a model that has none takes the data's labels."""
    config = subject.config
    named = config.get("classes") or [
        name for _, name in sorted((config.get("id2label") or {}).items(), key=lambda i: int(i[0]))
    ]
    names = [str(name) for name in named]
    if len(names) != count or not set(labels) <= set(names):
        plain = [str(i) for i in range(count)]
        names = plain if set(labels) <= set(plain) else sorted(set(labels))
    if len(names) != count or not set(labels) <= set(names):
        odd = sorted(set(labels) - set(names))[:3]
        raise InvalidArgument(
            "BAD_SPEC",
            f"evaluate.labels: {subject.ref} gives {count} scores for {', '.join(names[:8])}, and "
            f"the data has the labels {', '.join(sorted(set(labels))[:8])}"
            + (f" (unknown: {', '.join(odd)})." if odd else "."),
        )
    return names


def probabilities(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return rows that sum to 1: as they are if they do, else by softmax."""
    values = scores.astype(np.float64)
    if (values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-3):
        scaled: npt.NDArray[np.float64] = values / values.sum(axis=1, keepdims=True)
        return scaled
    grown = np.exp(values - values.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float64] = grown / grown.sum(axis=1, keepdims=True)
    return result


def classification(
    scores: npt.NDArray[np.float32], labels: Sequence[str], names: list[str], positive: str
) -> tuple[dict[str, float], npt.NDArray[np.int64]]:
    """Return the figures and the confusion matrix. Raises BAD_SPEC for an unknown `positive`."""
    from sklearn import metrics
    from torch import from_numpy
    from torchmetrics.functional.classification import multiclass_calibration_error

    if positive and positive not in names:
        raise InvalidArgument(
            "BAD_SPEC", f"evaluate.positive is {positive[:60]!r}; classes are {', '.join(names)}."
        )
    index = {name: i for i, name in enumerate(names)}
    truth = np.array([index[label] for label in labels])
    chances = probabilities(scores)
    said = chances.argmax(axis=1)
    how: dict[str, Any] = {"average": "macro"}
    if positive and len(names) == 2:
        how = {"average": "binary", "pos_label": index[positive]}
    figures = {"accuracy": float(metrics.accuracy_score(truth, said))}
    for name in ("precision", "recall", "f1"):
        score = getattr(metrics, f"{name}_score")
        figures[name] = float(score(truth, said, zero_division=0.0, **how))
    if len(set(truth.tolist())) == len(names):  # else it is not defined
        if len(names) == 2:
            one = index[positive] if positive else 1
            figures["auc"] = float(metrics.roc_auc_score(truth == one, chances[:, one]))
        else:
            figures["auc"] = float(metrics.roc_auc_score(truth, chances, multi_class="ovr"))
    error = multiclass_calibration_error(
        from_numpy(chances), from_numpy(truth), num_classes=len(names), n_bins=BINS, norm="l1"
    )
    figures["calibration_error"] = float(error)
    matrix = metrics.confusion_matrix(truth, said, labels=list(range(len(names))))
    return figures, matrix.astype(np.int64)


def generation(said: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """Return BLEU and chrF (0 to 100) and the word error rate."""
    import sacrebleu

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.text import word_error_rate

        wer = float(word_error_rate(list(said), list(wanted)))
    return {
        "bleu": float(sacrebleu.corpus_bleu(list(said), [list(wanted)]).score),
        "chrf": float(sacrebleu.corpus_chrf(list(said), [list(wanted)]).score),
        "wer": wer if math.isfinite(wer) else math.nan,
    }
