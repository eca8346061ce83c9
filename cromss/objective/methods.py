"""Methods for noisy labels: the paper's, none at all (every baseline), or the oracle's."""

from typing import Annotated, Literal

import pydantic
import torch

from cromss.objective.confidence import IGNORE, Confidence, Labels
from cromss.objective.pool import Scope
from cromss.objective.thresholds import Threshold
from cromss.objective.weights import Share, Weights, entropy_weights, label_weights
from cromss.settings import Settings


class CrossModal(Settings):
    """The paper's sample selection (eq. 3)."""

    kind: Literal["cromss"] = "cromss"

    def label_weights(
        self, confidence: Confidence, labels: Labels, clean: Labels | None, alpha: Share, scope: Scope, per_class: bool,
        classes: int, threshold: Threshold,
    ) -> Weights:  # fmt: skip
        return label_weights(confidence, labels, alpha, scope, per_class, classes=classes, threshold=threshold)

    def entropy_weights(self, confidence: Confidence, gamma: Share) -> Weights:
        return entropy_weights(confidence, gamma)


class Plain(Settings):
    """Every label and every teacher counts alike: validation, and the baselines without selection."""

    kind: Literal["plain"] = "plain"

    def label_weights(
        self, confidence: Confidence, labels: Labels, clean: Labels | None, alpha: Share, scope: Scope, per_class: bool,
        classes: int, threshold: Threshold,
    ) -> Weights:  # fmt: skip
        return (labels != IGNORE).to(confidence.dtype)

    def entropy_weights(self, confidence: Confidence, gamma: Share) -> Weights:
        return torch.ones_like(confidence)


class Oracle(Settings):
    """Exactly the right labels count: what a perfect selection would reach. Needs clean labels."""

    kind: Literal["oracle"] = "oracle"

    def label_weights(
        self, confidence: Confidence, labels: Labels, clean: Labels | None, alpha: Share, scope: Scope, per_class: bool,
        classes: int, threshold: Threshold,
    ) -> Weights:  # fmt: skip
        if clean is None:
            raise ValueError(
                "objective.method.kind=oracle: needs clean labels, which this data has not; "
                "pretrain on the synthetic Earth or take cromss or plain"
            )
        return ((labels == clean) & (labels != IGNORE)).to(confidence.dtype)

    def entropy_weights(self, confidence: Confidence, gamma: Share) -> Weights:
        return torch.ones_like(confidence)


Method = Annotated[CrossModal | Plain | Oracle, pydantic.Field(discriminator="kind")]
