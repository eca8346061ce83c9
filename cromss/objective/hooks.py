"""What a method for noisy labels may decide, and what it may look at: the base of every member of `Method`.

A method that decides nothing is a baseline: cross-entropy and Dice with every label counting alike, unweighted consistency.
"""

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from cromss.objective.confidence import IGNORE, Confidence, Labels, Logits
from cromss.objective.losses import LabelsOrTargets, PixelLoss, Scalar, cross_entropy
from cromss.objective.pool import Scope
from cromss.objective.thresholds import Threshold
from cromss.objective.weights import Share, Weights
from cromss.settings import Settings

# The keys of `objective` that steer a selection. Whatever else it holds means something to every method.
SELECTION = frozenset({"alpha", "gamma", "ramp_epochs", "per_class", "threshold", "confidence", "enhancement"})


class Evidence(NamedTuple):
    """What is known of every pixel's label. Maps (B, H, W) by modality, all detached."""

    own: dict[str, Confidence]  # F_l, the probability of the given label
    enhanced: dict[str, Confidence]  # F'_l, after eq. 2
    labels: Labels
    clean: Labels | None  # the true labels, where they are known
    log_q: dict[str, Logits] | None = None  # ln Q; None in fused.py, which keeps nothing per class


class Cut(NamedTuple):
    """Where the trusted labels end: the share `alpha`, and which pixels share a threshold (weights.py)."""

    alpha: Share
    scope: Scope
    per_class: bool
    classes: int
    threshold: Threshold


class Hooks(Settings):
    """The hooks, filled in with the baseline's answers."""

    title: ClassVar[str]  # before the fusion in a row of the table: CromSS-midF
    # Those of them that mean something to this method: the others change no result, and so no address of a run.
    reads: ClassVar[frozenset[str]] = frozenset()
    # Whether its modalities learn to agree through the consistency loss of the paper.
    consistent: ClassVar[bool] = True
    # Whether it needs a second modality.
    together: ClassVar[bool] = False
    # Whether fused.py has its gradient: the losses are the paper's, and the weights follow from maps (B, H, W).
    closed_form: ClassVar[bool] = True

    @property
    def averages(self) -> float | None:
        """The decay of the running mean of the network's weights that the method asks for; None: it asks for none."""
        return None

    def label_weights(self, evidence: Evidence, cut: Cut) -> dict[str, Weights]:
        """How much each label counts, by modality; 0 where ignored."""
        return {name: (evidence.labels != IGNORE).to(own.dtype) for name, own in evidence.own.items()}

    def entropy_weights(self, confidence: Confidence, gamma: Share) -> Weights:
        """How much a teacher's prediction counts."""
        return torch.ones_like(confidence)

    def pixel_loss(self, log_q: Logits, labels: LabelsOrTargets) -> PixelLoss:
        """What a pixel costs beside Dice."""
        return cross_entropy(log_q, labels)

    def extra(
        self, log_q: dict[str, Logits], labels: LabelsOrTargets, weights: dict[str, Weights],
        average: dict[str, Logits] | None, scope: Scope,
    ) -> Scalar | None:  # fmt: skip
        """A term of its own, not yet in any other. `average`: ln Q of the network of averaged weights (`averages`)."""
        return None

    def check(self, modalities: Iterable[str]) -> None:
        """Raises ValueError where these modalities are too few."""
        if self.together and len(names := tuple(modalities)) < 2:
            raise ValueError(
                f"objective.method.kind={self.kind}: each modality learns from the other, and there is only "
                f"{', '.join(names)}; take small_loss, its relative for one modality, or model.fusion.kind=middle or late"
            )


def others(maps: dict[str, Tensor], name: str) -> list[Tensor]:
    """What the other modalities have."""
    return [one for other, one in maps.items() if other != name]
