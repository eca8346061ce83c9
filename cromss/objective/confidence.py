"""Confidence: how far a network believes the noisy label, or its own prediction (section 3.1, eq. 1 and 2).

Confidences steer the training and are never trained: every map is computed from detached logits and lies in [0, 1].
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Integer
from torch import Tensor

IGNORE = 255  # the label of a pixel without a label

Logits = Float[Tensor, "batch classes height width"]
Labels = Integer[Tensor, "batch height width"]
Confidence = Float[Tensor, "batch height width"]


def label_confidence(
    logits: Logits, labels: Labels, ignore_index: int = IGNORE, *, normalised: bool = False
) -> Confidence:
    """F_l = Q[y]: the softmax probability of the given label; 0 where the label is `ignore_index`.

    `normalised`, here and elsewhere: the logits are log-probabilities already, so that a step takes the softmax once.
    """
    log_q = log_probabilities(logits.detach(), normalised)
    return log_likelihood(log_q, labels, ignore_index).exp() * (labels != ignore_index)


def entropy_confidence(logits: Logits, *, normalised: bool = False) -> Confidence:
    """F_e = 1 + (1 / ln C) sum_c Q ln Q (eq. 1): 1 for a one-hot prediction, 0 for a uniform one."""
    log_q = log_probabilities(logits.detach(), normalised)  # p * log(p) is NaN once p underflows
    negative_entropy = (log_q.exp() * log_q).sum(1)
    return (1 + negative_entropy / math.log(logits.shape[1])).clamp(0, 1)


def gini_confidence(logits: Logits, *, normalised: bool = False) -> Confidence:
    """sum_c Q^2: the alternative of the authors' code to eq. 1; 1 for a one-hot prediction, 1/C for a uniform one."""
    return log_probabilities(logits.detach(), normalised).exp().square().sum(1).clamp(max=1)


def enhance(own: Confidence, other: Confidence) -> Confidence:
    """Temper a modality's confidence by its agreement with the other (eq. 2). Never exceeds `own`."""
    return own * (1 + other) / 2


def enhance_all(confidences: dict[str, Tensor]) -> dict[str, Tensor]:
    """Eq. 2 for every modality, `other` being the mean of the other modalities; a lone modality stays as it is."""
    if len(confidences) == 1:
        return confidences
    return {
        modality: enhance(own, torch.stack([f for name, f in confidences.items() if name != modality]).mean(0))
        for modality, own in confidences.items()
    }


PREDICTION_CONFIDENCE: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": entropy_confidence,
    "gini": gini_confidence,
}


def log_likelihood(log_q: Logits, labels: Labels, ignore_index: int = IGNORE) -> Float[Tensor, "batch height width"]:
    """ln Q[y]; of an ignored label, ln Q of class 0: whoever asks leaves these pixels out."""
    given = labels.long().masked_fill(labels == ignore_index, 0).unsqueeze(1)
    return log_q.gather(1, given).squeeze(1)


def full_precision(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """float16 and bfloat16 as float32; wider types as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def log_probabilities(logits: Logits, normalised: bool = False) -> Logits:
    """ln Q over the classes, in float32 or wider; logits that are `normalised` are that already."""
    return logits if normalised else full_precision(logits).log_softmax(1)
