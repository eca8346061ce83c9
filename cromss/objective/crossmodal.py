"""The objective of CromSS: cross-modal sample selection, top to bottom as in section 3 of the paper."""

from itertools import permutations
from typing import Any, Literal, NamedTuple

import pydantic
import torch
from jaxtyping import Bool
from torch import Tensor

from cromss.objective.confidence import (
    IGNORE,
    PREDICTION_CONFIDENCE,
    Confidence,
    Labels,
    full_precision,
    label_confidence,
    log_probabilities,
)
from cromss.objective.enhancement import Agreement, Enhancement
from cromss.objective.hooks import SELECTION, Cut, Evidence
from cromss.objective.losses import (
    KL,
    Consistency,
    Targets,
    consistency,
    weighted_dice,
    weighted_mean,
)
from cromss.objective.methods import CrossModal, Method, Plain
from cromss.objective.pool import Scope
from cromss.objective.ramps import Exponential, Ramp
from cromss.objective.smoothing import NoSmoothing, Smoothing
from cromss.objective.thresholds import Histogram, Threshold
from cromss.objective.weights import Share, Weights
from cromss.settings import Settings, suggest


class Alpha(Settings):
    """The share of labels that counts fully: from 1 down to `end`."""

    end: float = pydantic.Field(0.5, ge=0, le=1)
    ramp: Ramp = Exponential()


class Gamma(Settings):
    """How far the teacher's confidence weighs its pixels: from 0 up to `end`."""

    end: float = pydantic.Field(1.0, ge=0, le=1)
    ramp: Ramp = Exponential()


class ObjectiveConfig(Settings):
    """The objective; the defaults are the paper's."""

    method: Method = CrossModal()
    alpha: Alpha = Alpha()
    gamma: Gamma = Gamma()
    ramp_epochs: int | None = pydantic.Field(None, ge=1)  # None: 0.8 of the run's epochs
    scope: Scope = "batch"
    per_class: bool = False
    threshold: Threshold = Histogram()
    confidence: Literal["entropy", "gini"] = "entropy"  # of a prediction, for the consistency weights
    enhancement: Enhancement = Agreement()  # eq. 2
    consistency: Consistency = KL()
    smoothing: Smoothing = NoSmoothing()

    def alpha_at(self, epoch: float, ramp_epochs: int) -> float:
        """alpha(e) = 1 - r(e) (1 - alpha_end)."""
        return 1 - self.alpha.ramp.over(ramp_epochs)(epoch) * (1 - self.alpha.end)

    def gamma_at(self, epoch: float, ramp_epochs: int) -> float:
        """gamma(e) = r(e) gamma_end."""
        return self.gamma.ramp.over(ramp_epochs)(epoch) * self.gamma.end

    def check(self, modalities: tuple[str, ...]) -> None:
        """Raises ValueError for a method or a teacher that these modalities cannot have."""
        self.method.check(modalities)
        said = {"consistency.teachers": self.consistency.teachers, "enhancement.trust": self.enhancement.trust}
        for key, teachers in said.items():
            if len(modalities) > 1 and (unknown := sorted(teachers.keys() - set(modalities))):
                raise ValueError(
                    f"objective.{key}: {', '.join(unknown)} is no modality here{suggest(unknown[0], modalities)}"
                )

    def identity(self, modalities: tuple[str, ...], ramp_epochs: int) -> dict[str, Any]:
        """The keys that can change what these modalities learn, each said in the fewest words."""
        kept, alone = self.model_dump(mode="json"), len(modalities) == 1
        kept["ramp_epochs"] = ramp_epochs
        kept["enhancement"] = self.enhancement.simplest(modalities).model_dump(mode="json")
        lessons = {name: self.consistency.lesson(name) for name in modalities}
        kept["consistency"]["teachers"] = {name: lesson for name, lesson in lessons.items() if lesson != 1}
        inert = SELECTION - self.method.reads
        if alone or self.consistency.weight == 0:  # nobody is taught
            inert |= {"gamma", "confidence"}
            kept["consistency"] = {"weight": 0.0}
        if alone:
            inert |= {"enhancement", "consistency"}
        return {key: value for key, value in kept.items() if key not in inert}

    def unweighted(self) -> "ObjectiveConfig":
        """The same losses with all weights 1 over this worker's batch: what validation is scored with."""
        return self.model_copy(update={"method": Plain(), "scope": "batch"})


class Selection(NamedTuple):
    """How far every pixel is trusted, and what it therefore counts: detached maps (B, H, W) by modality."""

    own: dict[str, Confidence]  # F_l
    confidence: dict[str, Confidence]  # F'_l
    label_weights: dict[str, Weights]
    entropy_weights: dict[str, Weights]


class ObjectiveParts(NamedTuple):
    """The loss, differentiable, and what it is made of; dicts are keyed by modality."""

    loss: Tensor  # segmentation + lambda * consistency + extra
    segmentation: Tensor  # sum over the modalities of cross-entropy and Dice
    cross_entropy: dict[str, Tensor]  # or what the method has in its place
    dice: dict[str, Tensor]
    consistency: Tensor  # before lambda
    confidence: dict[str, Tensor]  # F'_l, detached (B, H, W), as are the weights
    label_weights: dict[str, Tensor]
    entropy_weights: dict[str, Tensor]
    extra: Tensor | None = None  # the method's own term, where it has one


class CrossModalObjective:
    """Logits of every modality and their common noisy labels -> the training loss and its parts."""

    def __init__(self, config: ObjectiveConfig):
        self.config = config

    def __call__(
        self,
        logits: dict[str, Tensor],
        labels: Labels,
        *,
        alpha: Share,
        gamma: Share,
        targets: Targets | None = None,
        valid: Bool[Tensor, "batch height width"] | None = None,
        clean: Labels | None = None,
        average: dict[str, Tensor] | None = None,
    ) -> ObjectiveParts:
        """The loss in float32 (float64 logits: in float64), whatever autocast says.

        logits   modality -> (B, C, H, W), of any floating type; one modality has no consistency
        labels   (B, H, W) class numbers, 255 where there is none
        targets  (B, C, H, W) smoothed labels for the losses, all zero at ignored pixels; selection stays by `labels`
        valid    (B, H, W) True where every modality has image data; elsewhere a pixel counts nowhere
        clean    (B, H, W) true labels, for `method.kind=oracle`
        average  logits of the network of averaged weights, for a method that asks for one (`averages`)
        """
        with torch.autocast(labels.device.type, enabled=False):
            # Networks deliver channels last, which every softmax over the classes would copy: once here instead.
            # The softmax, too, is taken once, for everything below.
            log_q = _log_probabilities(logits, valid)
            average = None if average is None else _log_probabilities(average, valid)
            labels = _without(labels, valid, IGNORE)
            targets = labels if targets is None else _without(targets, valid)
            return self._parts(log_q, labels, alpha, gamma, targets, valid, clean, average)

    @torch.no_grad()
    def select(
        self,
        logits: dict[str, Tensor],
        labels: Labels,
        *,
        alpha: Share,
        gamma: Share,
        valid: Bool[Tensor, "batch height width"] | None = None,
        clean: Labels | None = None,
    ) -> Selection:
        """Whom the objective would trust, without its losses. Arguments as above."""
        with torch.autocast(labels.device.type, enabled=False):
            log_q = _log_probabilities(logits, valid)
            return self._select(log_q, _without(labels, valid, IGNORE), alpha, gamma, valid, clean)

    def _select(
        self, log_q: dict[str, Tensor], labels: Tensor, alpha: Share, gamma: Share, valid: Tensor | None,
        clean: Tensor | None,
    ) -> Selection:  # fmt: skip
        config, method = self.config, self.config.method

        # 3.1 How far does each network trust the given label, and its own prediction?
        own = {modality: label_confidence(q, labels, normalised=True) for modality, q in log_q.items()}
        confidence = PREDICTION_CONFIDENCE[config.confidence]
        prediction = {modality: confidence(q, normalised=True) for modality, q in log_q.items()}

        # ... and does the other modality agree? (eq. 2)
        label, prediction = config.enhancement(own), config.enhancement(prediction)

        # 3.2 Trusted labels count fully, the others in proportion (eq. 3); so do the teachers' predictions.
        cut = Cut(alpha, config.scope, config.per_class, _classes(log_q), config.threshold)
        label_weights = method.label_weights(Evidence(own, label, labels, clean, log_q), cut)
        entropy_weights = {
            modality: _without(method.entropy_weights(f, gamma), valid) for modality, f in prediction.items()
        }
        return Selection(own, label, label_weights, entropy_weights)

    def _parts(
        self,
        log_q: dict[str, Tensor],
        labels: Tensor,
        alpha: Share,
        gamma: Share,
        targets: Tensor,  # (B, H, W) or (B, C, H, W)
        valid: Tensor | None,
        clean: Tensor | None,
        average: dict[str, Tensor] | None,
    ) -> ObjectiveParts:
        config, method = self.config, self.config.method

        # Whom to trust.
        _, label, label_weights, entropy_weights = self._select(log_q, labels, alpha, gamma, valid, clean)

        # Each modality learns the noisy labels ...
        cross_entropy = {
            modality: weighted_mean(method.pixel_loss(q, targets), targets, label_weights[modality], scope=config.scope)
            for modality, q in log_q.items()
        }
        dice = {
            modality: weighted_dice(q, targets, label_weights[modality], scope=config.scope, normalised=True)
            for modality, q in log_q.items()
        }
        segmentation = sum(cross_entropy.values()) + sum(dice.values())

        # ... and to agree with the others, two-way.
        agreement = self._consistency(log_q, entropy_weights) if method.consistent else segmentation.new_zeros(())
        loss = segmentation + config.consistency.weight * agreement

        # A rival may have a term of its own.
        extra = method.extra(log_q, targets, label_weights, average, config.scope)
        if extra is not None:
            loss = loss + extra
        return ObjectiveParts(
            loss, segmentation, cross_entropy, dice, agreement, label, label_weights, entropy_weights, extra
        )

    def _consistency(self, log_q: dict[str, Tensor], weights: dict[str, Tensor]) -> Tensor:
        """Every modality as student of every other; with three or more, a student's loss is the mean over teachers."""
        settings, scope = self.config.consistency, self.config.scope
        pairs = [
            settings.lesson(teacher)
            * consistency(log_q[student], log_q[teacher], weights[teacher], settings.kind, scope, normalised=True)
            for student, teacher in permutations(log_q, 2)
        ]
        if not pairs:
            return next(iter(log_q.values())).new_zeros(())
        return torch.stack(pairs).sum() / (len(log_q) - 1)


def _log_probabilities(logits: dict[str, Tensor], valid: Tensor | None) -> dict[str, Tensor]:
    return {
        modality: log_probabilities(_without(full_precision(z).contiguous(), valid)) for modality, z in logits.items()
    }


def _without(values: Tensor, valid: Tensor | None, fill: int = 0) -> Tensor:
    """`fill`, and no gradient, at pixels without image data; a class dimension, where there is one, is dimension 1."""
    if valid is None:
        return values
    return values.masked_fill(~(valid.unsqueeze(1) if values.ndim == 4 else valid), fill)


def _classes(logits: dict[str, Tensor]) -> int:
    return next(iter(logits.values())).shape[1]
