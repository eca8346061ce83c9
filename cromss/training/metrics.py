"""OA, AA and mIoU from ONE confusion matrix over everything that was scored."""

from dataclasses import dataclass

import numpy as np
import torch

from cromss.landcover import IGNORE


class Confusion:
    """Counts of (true class, predicted class) over any number of batches; ignored pixels are left out."""

    def __init__(self, classes: int, device: torch.device | str = "cpu"):
        from cromss.torchvision_cpu import make_importable

        make_importable()
        from torchmetrics.classification import (
            MulticlassConfusionMatrix,
        )  # slow to import: only where something is scored

        self._metric = MulticlassConfusionMatrix(classes, ignore_index=IGNORE, validate_args=False).to(device)

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch: logits (B,C,H,W), labels (B,H,W) class numbers, IGNORE left out."""
        self._metric.update(logits.argmax(1), labels.long())

    @property
    def counts(self) -> np.ndarray:
        """(C, C) int64, rows true, columns predicted, of this process."""
        return self._metric.confmat.cpu().numpy().astype(np.int64)


@dataclass(frozen=True)
class Scores:
    """Overall accuracy, average accuracy (mean class recall), mean IoU, and the IoU of each class (NaN: class absent)."""

    oa: float
    aa: float
    miou: float
    iou: tuple[float, ...]


def scores(confusion: np.ndarray) -> Scores:
    """Scores of a (C, C) confusion matrix, rows true.

    A class absent from truth and prediction has no IoU and is left out of the mean; a class absent from the truth has
    no recall. (The authors' code scores an absent class 1.)
    """
    confusion = np.asarray(confusion, np.float64)
    hit, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = hit / (true + predicted - hit)
        recall = hit / true
        oa = hit.sum() / confusion.sum()
    return Scores(float(oa), _mean(recall), _mean(iou), tuple(float(x) for x in iou))


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive pixel scores above a negative one, ties counted half."""
    from scipy.stats import rankdata

    positive = np.asarray(positive, bool).ravel()
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return float("nan")
    ranks = rankdata(np.asarray(score, np.float64).ravel())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def average_precision(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the precision-recall curve, as steps: sum over the distinct scores, falling, of (gain in recall) x precision.

    Pixels that tie are found together. NaN without a positive pixel; the share of positives where all tie.
    """
    score, positive = np.asarray(score).ravel(), np.asarray(positive, bool).ravel()
    if not positive.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    found = np.cumsum(positive[order], dtype=np.float64)
    last = np.append(np.flatnonzero(np.diff(score[order])), score.size - 1)  # of every run of ties
    found, looked = found[last], last + 1.0
    return float((np.diff(found, prepend=0.0) * found / looked).sum() / found[-1])
