"""Weights: how much a pixel's label, or a teacher's prediction, counts in the losses (section 3.2, eq. 3)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cromss.objective.confidence import IGNORE, Confidence, Labels
from cromss.objective.pool import Scope, pooled, spans_workers

LABELS = 256  # label values a uint8 map can hold; the groups of a per-class threshold
DIGIT_BITS = 4  # of the distributed search: eight rounds find the 32 bits of a float32

Weights = Float[Tensor, "batch height width"]


def entropy_weights(confidence: Confidence, gamma: float) -> Weights:
    """W_e = (1 - gamma) + gamma F'_e: from all ones at gamma 0 to the confidence itself at gamma 1."""
    return (1 - gamma) + gamma * confidence


def label_weights(
    confidence: Confidence,
    labels: Labels,
    alpha: float,
    scope: Scope = "batch",
    per_class: bool = False,
    ignore_index: int = IGNORE,
) -> Weights:
    """W_l = min(1, F'_l / w) (eq. 3): the share `alpha` of most trusted labels counts fully, the rest in proportion.

    confidence  F'_l, in [0, 1]
    scope       the pixels that share a threshold w: this worker's `batch` (the paper), each `image`, or `global`: the
                batches of all workers, which makes the result independent of their number (then a collective call)
    per_class   one threshold per class, as in the authors' code, in place of a single one

    w is the k-th highest confidence of the n labelled pixels, found exactly (in float32):
    k = max(1, floor(alpha n)), or, per class, k_c = floor(alpha n_c) in float32, where k_c = 0 gives the class weight 0
    and alpha = 0 leaves F'_l itself. A threshold of 0 gives weight 1. Ignored pixels have weight 0 and enter no n.
    """
    known = labels != ignore_index
    if per_class and alpha == 0:
        return confidence * known
    group, groups = _groups(labels, scope, per_class)
    ordered = _ordered(confidence, group, known)
    start, end = torch.searchsorted(ordered, _bounds(groups, labels.device)).unfold(0, 2, 1).unbind(1)
    rank = _rank(pooled(end - start, scope), alpha, per_class)
    search = _kth_highest_of_all if spans_workers(scope) else _kth_highest
    threshold = search(ordered, end, rank).to(confidence.dtype)[group]
    weights = torch.where(threshold > 0, confidence / threshold, 1).clamp(max=1)
    return weights * known * (rank > 0)[group]


def _rank(count: Int[Tensor, " groups"], alpha: float, per_class: bool) -> Int[Tensor, " groups"]:
    if per_class:
        return (count.float() * alpha).floor().long()
    return (count.double() * alpha).floor().long().clamp(min=1)


def _groups(labels: Labels, scope: Scope, per_class: bool) -> tuple[Int[Tensor, "#batch #height #width"], int]:
    """The number of each pixel's group, broadcastable to the pixels, and how many groups there are."""
    images = len(labels) if scope == "image" else 1
    group = torch.arange(images, device=labels.device).view(-1, 1, 1)
    if not per_class:
        return group, images
    return group * LABELS + labels.long() % LABELS, images * LABELS


# --- the k-th highest value of every group, exactly ---
# A float32 that is not negative orders like its bits. `group << 32 | bits` in one sorted list holds every group as a
# contiguous run, ascending; ignored pixels come first, as -1. No shape depends on the data, nothing waits for a device.


def _ordered(confidence: Confidence, group: Tensor, known: Tensor) -> Int[Tensor, " pixels"]:
    bits = confidence.float().contiguous().view(torch.int32).long()
    return torch.where(known, bits + (group << 32), -1).flatten().sort().values


def _bounds(groups: int, device: torch.device) -> Int[Tensor, " bounds"]:
    return torch.arange(groups + 1, device=device) << 32


def _as_float(bits: Int[Tensor, " groups"]) -> Float[Tensor, " groups"]:
    return bits.to(torch.int32).view(torch.float32)


def _kth_highest(ordered: Tensor, end: Tensor, rank: Tensor) -> Float[Tensor, " groups"]:
    """The groups' values in one list. Meaningless for a group with fewer than `rank` or no values."""
    return _as_float(ordered[(end - rank).clamp(0, len(ordered) - 1)] & 0x7FFFFFFF)


def _kth_highest_of_all(ordered: Tensor, end: Tensor, rank: Tensor) -> Float[Tensor, " groups"]:
    """The same over the lists of all workers: a search for the bits from the highest down, exchanging counts alone."""
    group = _bounds(len(end) - 1, end.device).unsqueeze(1)
    digits = torch.arange(1 << DIGIT_BITS, device=end.device)
    bits = torch.zeros_like(group)
    for shift in range(32 - DIGIT_BITS, -1, -DIGIT_BITS):
        reaching = end.unsqueeze(1) - torch.searchsorted(ordered, group + bits + (digits << shift))
        enough = pooled(reaching, "global") >= rank.unsqueeze(1)  # of each digit: k values or more are as high
        bits += (enough.sum(1, keepdim=True) - 1).clamp(min=0) << shift
    return _as_float(bits.squeeze(1) & 0x7FFFFFFF)
