"""Weights: how much a pixel's label, or a teacher's prediction, counts in the losses (section 3.2, eq. 3)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cromss.objective.confidence import IGNORE, Confidence, Labels
from cromss.objective.pool import Scope
from cromss.objective.thresholds import Exact, Threshold

LABELS = 256  # label values a uint8 map can hold
EXACT = Exact()

Weights = Float[Tensor, "batch height width"]
Share = float | Float[Tensor, ""]  # a tensor where a compiled step must not be compiled again for every epoch's value


def entropy_weights(confidence: Confidence, gamma: Share) -> Weights:
    """W_e = (1 - gamma) + gamma F'_e: from all ones at gamma 0 to the confidence itself at gamma 1."""
    return (1 - gamma) + gamma * confidence


def label_weights(
    confidence: Confidence,
    labels: Labels,
    alpha: Share,
    scope: Scope = "batch",
    per_class: bool = False,
    ignore_index: int = IGNORE,
    *,
    classes: int = LABELS,
    threshold: Threshold = EXACT,
) -> Weights:
    """W_l = min(1, F'_l / w) (eq. 3): the share `alpha` of most trusted labels counts fully, the rest in proportion.

    confidence  F'_l, in [0, 1]
    alpha       in [0, 1]; a tensor should be float64, as Python's numbers are
    scope       the pixels that share a threshold w: this worker's `batch` (the paper), each `image`, or `global`: the
                batches of all workers, which makes the result independent of their number (then a collective call)
    per_class   one threshold per class, as in the authors' code, in place of a single one
    classes     label values there can be, beside `ignore_index`: fewer make `per_class` cheaper
    threshold   how w is found: exactly (in float32), or within a stated error (thresholds.py)

    w is the k-th highest confidence of the n labelled pixels: k = max(1, floor(alpha n)), or, per class,
    k_c = floor(alpha n_c) in float32, where k_c = 0 gives the class weight 0 and alpha = 0 leaves F'_l itself. A threshold
    of 0 gives weight 1. Ignored pixels have weight 0 and enter no n.
    """
    alpha = torch.as_tensor(alpha, dtype=torch.float64, device=labels.device)
    w, reached = _thresholds(confidence, labels, alpha, scope, per_class, ignore_index, classes, threshold)
    w = w.to(confidence.dtype)
    weights = torch.where(w > 0, confidence / w, 1).clamp(max=1) * reached
    if per_class:
        weights = torch.where(alpha > 0, weights, confidence)
    return weights * (labels != ignore_index)


def kept_labels(
    confidence: Confidence,
    labels: Labels,
    alpha: Share,
    scope: Scope = "batch",
    per_class: bool = False,
    ignore_index: int = IGNORE,
    *,
    classes: int = LABELS,
    threshold: Threshold = EXACT,
) -> Weights:
    """Eq. 3 made hard, the small-loss criterion: 1 for the share `alpha` of most trusted labels, 0 for the others.

    Arguments as in `label_weights`, and the same threshold; pixels that tie with the k-th are kept too.
    """
    alpha = torch.as_tensor(alpha, dtype=torch.float64, device=labels.device)
    w, reached = _thresholds(confidence, labels, alpha, scope, per_class, ignore_index, classes, threshold)
    kept = (confidence.float() >= w) & reached & (labels != ignore_index)  # w was found among the float32 values
    return kept.to(confidence.dtype)


def _thresholds(
    confidence: Confidence, labels: Labels, alpha: Tensor, scope: Scope, per_class: bool, ignore_index: int, classes: int,
    threshold: Threshold,
) -> tuple[Float[Tensor, "#batch #height #width"], Bool[Tensor, "#batch #height #width"]]:  # fmt: skip
    """Every pixel's threshold w, and whether its group has one: whether k > 0."""

    def rank_of(count: Int[Tensor, " groups"]) -> Int[Tensor, " groups"]:
        if per_class:
            return (count.float() * alpha.float()).floor().long()
        return (count.double() * alpha).floor().long().clamp(min=1)

    group, groups = _groups(labels, scope, classes if per_class else 1)
    found, rank = threshold.find(confidence.detach(), labels != ignore_index, group, groups, rank_of, scope)
    return found[group], (rank > 0)[group]


def _groups(labels: Labels, scope: Scope, classes: int) -> tuple[Int[Tensor, "#batch #height #width"], int]:
    """The number of each pixel's group, broadcastable to the pixels, and how many groups there are."""
    images = len(labels) if scope == "image" else 1
    image = torch.arange(images, device=labels.device).view(-1, 1, 1)
    return (image if classes == 1 else image * classes + labels.long() % classes), images * classes
