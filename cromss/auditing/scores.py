"""What the audit says of a pixel. Stated once, here:

    suspicion = 1 - F'_l,   F'_l = mean over the modalities of their enhanced label confidences (eq. 2)

A label is as suspicious as the network's confidence in it is low; the labels that are flagged are those of most suspicion.

Confidences are kept as 16-bit codes: the leading bits of a float32, so that they order as the numbers do, also near 0, where
a sure network leaves its doubts. A code stands for values at most 0.2 % apart.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cromss.maps.model import mean_log_probabilities
from cromss.objective.confidence import entropy_confidence, label_confidence, log_probabilities
from cromss.objective.enhancement import Enhancement

_DROPPED = 14  # of a float32's bits; those of [0, 1] then fit 16
CODES = (0x3F800000 >> _DROPPED) + 1  # codes there are, 1.0 being the last
NODATA = 255
STEPS = 254  # a share in [0, 1] as uint8: 0 .. 254, 255 = no data


@dataclass(frozen=True)
class Looked:
    """What a network says of some patches; arrays (B, H, W).

    own           modality -> label confidence F_l as uint16 code; 0 where there is no label
    entropy       of the mean of the modalities' softmax, 1 = uniform; uint8 shares
    disagreement  Jensen-Shannon divergence of the modalities' softmax, 1 = they share no class; None of a lone modality
    best          the class of the highest mean probability, uint8
    sure          that probability, uint8 share

    The divergence in place of "the argmax differs": it is the part of `entropy` that comes from the modalities contradicting
    each other and not from their own doubts, symmetric, finite for probabilities of 0, and does not jump at a tie.
    """

    own: dict[str, np.ndarray]
    entropy: np.ndarray
    disagreement: np.ndarray | None
    best: np.ndarray
    sure: np.ndarray


def look(logits: dict[str, Tensor], labels: Tensor, owner: str = "the network") -> Looked:
    """Logits (B, C, H, W) by modality and labels (B, H, W), 255 where there is none. Raises ValueError, naming `owner`, for
    logits that are not finite."""
    if not all(bool(torch.isfinite(one).all()) for one in logits.values()):
        raise ValueError(
            f"{owner} answers with numbers that are not finite: were its weights damaged, or did it diverge?"
        )
    log_q = {name: log_probabilities(one) for name, one in logits.items()}
    own = {name: label_confidence(q, labels, normalised=True) for name, q in log_q.items()}
    mean = mean_log_probabilities(log_q)
    entropy = 1 - entropy_confidence(mean, normalised=True)
    sure, best = mean.max(1)
    return Looked(
        own={name: encoded(one.cpu().numpy()) for name, one in own.items()},
        entropy=as_share(entropy.cpu().numpy()),
        disagreement=as_share(divergence(log_q, mean).cpu().numpy()) if len(log_q) > 1 else None,
        best=best.byte().cpu().numpy(),
        sure=as_share(sure.exp().cpu().numpy()),
    )


def divergence(log_q: dict[str, Tensor], mean: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two or more distributions (B, C, H, W), `mean` being the log of their mean; divided by the
    log of their number, its largest value. (B, H, W) in [0, 1]."""
    parts = torch.stack([(q.exp() * (q - mean)).sum(1) for q in log_q.values()])
    return (parts.mean(0) / math.log(len(log_q))).clamp(0, 1)


def enhanced(own: dict[str, np.ndarray], enhancement: Enhancement) -> dict[str, np.ndarray]:
    """F' of every modality (eq. 2), from the codes of its own F; float32."""
    f = enhancement({name: torch.from_numpy(decoded(codes)) for name, codes in own.items()})
    return {name: one.numpy() for name, one in f.items()}


def joint(confidences: dict[str, np.ndarray]) -> np.ndarray:
    """The confidence that the audit ranks by: the mean of the modalities' F'."""
    return np.mean(np.stack(list(confidences.values())), axis=0, dtype=np.float32)


def encoded(values: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] to uint16 codes, truncated."""
    bits = np.ascontiguousarray(np.clip(values, 0, 1), np.float32).view(np.uint32) >> _DROPPED
    return bits.astype(np.uint16)


def decoded(codes: np.ndarray) -> np.ndarray:
    """Codes to the least number that they stand for, float32."""
    return (codes.astype(np.uint32) << _DROPPED).view(np.float32)


def as_share(values: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] to uint8, 0 .. 254."""
    return np.rint(np.clip(values, 0, 1) * STEPS).astype(np.uint8)
