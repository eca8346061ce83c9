"""Losses: weighted cross-entropy and Dice against the noisy labels, consistency between the modalities (section 3.2).

Every loss is a ratio of sums over pixels. With scope `global` the sums run over all workers (see pool.py): the same
logits in any number of shards give the same loss and, under DistributedDataParallel, the same gradients.
"""

from typing import Annotated, Literal

import pydantic
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from cromss.objective.confidence import IGNORE, Labels, Logits, log_likelihood, log_probabilities
from cromss.objective.pool import Scope, pooled
from cromss.objective.weights import Weights
from cromss.settings import Settings

DICE_EPSILON = 1e-7
PIXELS = (0, 2, 3)  # the dimensions of a (B, C, H, W) tensor that a sum per class runs over

Targets = Float[Tensor, "batch classes height width"]
LabelsOrTargets = Integer[Tensor, "batch height width"] | Targets
Scalar = Float[Tensor, ""]
PixelLoss = Float[Tensor, "batch height width"]
Discrepancy = Literal["kl", "cross_entropy", "mse"]


class _Consistency(Settings):
    """`teachers`: how much a teacher's lessons cost its students beside `weight`, by modality (1 where not named): with
    `{s1: 0.2}` Sentinel-2 is drawn to Sentinel-1 a fifth as hard as Sentinel-1 to Sentinel-2; with 0, not at all."""

    weight: float = pydantic.Field(1.0, ge=0)
    teachers: dict[str, Annotated[float, pydantic.Field(ge=0)]] = {}

    def lesson(self, teacher: str) -> float:
        """The factor of this teacher's consistency losses."""
        return self.teachers.get(teacher, 1.0)


class KL(_Consistency):
    """KL(teacher || student): the paper's consistency."""

    kind: Literal["kl"] = "kl"


class CrossEntropy(_Consistency):
    """Soft cross-entropy: the authors' code. The gradient of `kl`, another value (and so another plateau schedule)."""

    kind: Literal["cross_entropy"] = "cross_entropy"


class MSE(_Consistency):
    """Squared distance of the two class distributions."""

    kind: Literal["mse"] = "mse"


Consistency = Annotated[KL | CrossEntropy | MSE, pydantic.Field(discriminator="kind")]


def weighted_cross_entropy(
    logits: Logits, labels: LabelsOrTargets, weights: Weights, ignore_index: int = IGNORE, scope: Scope = "batch", *,
    normalised: bool = False,
) -> Scalar:  # fmt: skip
    """CE_w = sum W CE(Z, y) / sum W; 0 where no pixel counts.

    labels  class numbers, or one target distribution per pixel, all zero where there is no label
    """
    entropies = cross_entropy(log_probabilities(logits, normalised), labels, ignore_index)
    return weighted_mean(entropies, labels, weights, ignore_index, scope)


def cross_entropy(log_q: Logits, labels: LabelsOrTargets, ignore_index: int = IGNORE) -> PixelLoss:
    """-ln Q[y], or -sum_c t_c ln Q_c, of every pixel; of an ignored one whatever comes, but finite."""
    return -(labels * log_q).sum(1) if labels.ndim == 4 else -log_likelihood(log_q, labels, ignore_index)


def weighted_mean(
    losses: PixelLoss, labels: LabelsOrTargets, weights: Weights, ignore_index: int = IGNORE, scope: Scope = "batch"
) -> Scalar:
    """sum W loss / sum W over the labelled pixels; 0 where none counts."""
    weights = weights * known(labels, ignore_index)
    return ratio((weights * losses).sum(), weights.sum(), scope)


def known(labels: LabelsOrTargets, ignore_index: int = IGNORE) -> Bool[Tensor, "batch height width"]:
    """Where there is a label: a class number that is not ignored, a target that is not all zero."""
    return labels.sum(1) > 0 if labels.ndim == 4 else labels != ignore_index


def weighted_dice(
    logits: Logits, labels: LabelsOrTargets, weights: Weights, ignore_index: int = IGNORE, scope: Scope = "batch", *,
    normalised: bool = False,
) -> Scalar:  # fmt: skip
    """D_c = 1 - 2 sum W p t / sum W (p + t) over the batch, 0 for a class absent from y; the mean over ALL classes."""
    probabilities = log_probabilities(logits, normalised).exp()
    targets = one_hot(labels, logits.shape[1], ignore_index) if labels.ndim == 3 else labels
    weights = (weights * known(labels, ignore_index)).unsqueeze(1)
    sums = torch.stack(
        [
            (weights * probabilities * targets).sum(PIXELS),
            (weights * probabilities).sum(PIXELS) + (weights * targets).sum(PIXELS),
            targets.sum(PIXELS).to(probabilities.dtype),
        ]
    )
    overlap, size, presence = pooled(sums, scope)
    dice = 1 - 2 * overlap / size.clamp(min=DICE_EPSILON)
    return (dice * (presence > 0)).mean()


def consistency(
    student: Logits, teacher: Logits, teacher_weights: Weights, kind: Discrepancy = "kl", scope: Scope = "batch", *,
    normalised: bool = False,
) -> Scalar:  # fmt: skip
    """sum W_e D(P_teacher, Q_student) / sum W_e: draws the student to the teacher, which is detached."""
    log_student = log_probabilities(student, normalised)
    log_teacher = log_probabilities(teacher.detach(), normalised)
    match kind:
        case "kl":
            distance = log_teacher.exp() * (log_teacher - log_student)
        case "cross_entropy":
            distance = -log_teacher.exp() * log_student
        case "mse":
            distance = (log_teacher.exp() - log_student.exp()).square()
        case _:
            raise ValueError(f"consistency kind={kind}: unknown; valid: kl, cross_entropy, mse")
    return ratio((teacher_weights * distance.sum(1)).sum(), teacher_weights.sum(), scope)


def as_targets(labels: LabelsOrTargets, classes: int, ignore_index: int = IGNORE) -> Targets:
    """Class numbers as one-hot targets, all zero where ignored; targets as they are."""
    return labels if labels.ndim == 4 else one_hot(labels, classes, ignore_index).float()


def one_hot(labels: Labels, classes: int, ignore_index: int = IGNORE) -> Bool[Tensor, "batch classes height width"]:
    """True at each pixel's class; False everywhere where ignored."""
    numbers = torch.arange(classes, device=labels.device).view(1, -1, 1, 1)
    labels = labels.unsqueeze(1)
    return (labels == numbers) & (labels != ignore_index)


def ratio(numerator: Scalar, denominator: Scalar, scope: Scope) -> Scalar:
    """A ratio of sums over the pixels of the scope; 0 where the denominator is."""
    numerator, denominator = pooled(torch.stack([numerator, denominator]), scope)
    return numerator / torch.where(denominator > 0, denominator, 1)
