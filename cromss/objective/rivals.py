"""Rivals: what others do about noisy labels, under the same networks, data, budget, Dice and consistency as the baselines.

Written for images with one label, here for pixels: a sample is a labelled pixel, and every sum over samples is the weighted
mean over the labelled pixels of the scope, as in the cross-entropy that it replaces. Dice is added with the method's own
weights, the consistency loss is unweighted (JoCoR brings its own). Every modality's network is trained with the method;
where two networks were two random beginnings, they are two modalities here. Notation: p = softmax(z), y the given
label, t a target distribution (one-hot, or smoothed).

The selecting ones keep the share `objective.alpha` of the labels, as CromSS does: R(e) = 1 - tau min(e / T_k, 1) of Han et al.
(2018) is `alpha: {end: 1 - tau, ramp: {kind: linear, epochs: T_k}}`. Left alone, they keep what CromSS trusts fully.
"""

from itertools import permutations
from typing import ClassVar, Literal

import pydantic
import torch
from torch import Tensor

from cromss.objective.confidence import Confidence, Logits, log_likelihood
from cromss.objective.hooks import Cut, Evidence, Hooks, others
from cromss.objective.losses import LabelsOrTargets, PixelLoss, Scalar, as_targets, cross_entropy, weighted_mean
from cromss.objective.pool import Scope
from cromss.objective.weights import Weights, kept_labels

SELECTS = frozenset({"alpha", "ramp_epochs", "per_class", "threshold"})


# --- another loss for a pixel -----------------------------------------------------------------------------------------


class SymmetricCrossEntropy(Hooks):
    """a CE(t, p) + b RCE(p, t), with RCE = -sum_c p_c ln t_c and ln 0 = A: of a hard label, RCE = -A (1 - p_y).

    Wang et al. 2019, Symmetric cross entropy for robust learning with noisy labels, ICCV, arXiv 1908.06112;
    a = 0.1 and b = 1 are theirs for ten classes. Of a smoothed target, ln t_c is bounded by A from below; their code has
    A = ln 1e-4 = -9.2.
    """

    title: ClassVar[str] = "SCE"
    closed_form: ClassVar[bool] = False
    kind: Literal["sce"] = "sce"
    alpha: float = pydantic.Field(0.1, ge=0)
    beta: float = pydantic.Field(1.0, ge=0)
    log_zero: float = pydantic.Field(-4.0, lt=0)  # A

    def pixel_loss(self, log_q: Logits, labels: LabelsOrTargets) -> PixelLoss:
        log_targets = as_targets(labels, log_q.shape[1]).to(log_q.dtype).log().clamp(min=self.log_zero)
        reverse = -(log_q.exp() * log_targets).sum(1)
        return self.alpha * cross_entropy(log_q, labels) + self.beta * reverse


class GeneralisedCrossEntropy(Hooks):
    """(1 - p_y^q) / q: cross-entropy as q -> 0, the mean absolute error (up to its factor 2) at q = 1.

    Zhang & Sabuncu 2018, Generalized cross entropy loss for training deep neural networks with noisy labels, NeurIPS,
    arXiv 1805.07836, with their q = 0.7; without their truncation. Of a smoothed target, the mean over it.
    """

    title: ClassVar[str] = "GCE"
    closed_form: ClassVar[bool] = False
    kind: Literal["gce"] = "gce"
    q: float = pydantic.Field(0.7, gt=0, le=1)

    def pixel_loss(self, log_q: Logits, labels: LabelsOrTargets) -> PixelLoss:
        if labels.ndim == 4:
            return -(labels * torch.expm1(self.q * log_q)).sum(1) / self.q
        return -torch.expm1(self.q * log_likelihood(log_q, labels)) / self.q


class Bootstrapping(Hooks):
    """-sum_c (b t_c + (1 - b) p_c) ln p_c: the target is drawn to the network's own prediction (soft bootstrapping).

    Reed et al. 2014, Training deep neural networks on noisy labels with bootstrapping, arXiv 1412.6596, with their
    b = 0.95. The p in the target is NOT detached: the paper reads the loss as cross-entropy with minimum entropy
    regularisation, b CE + (1 - b) H(p), which it is only if the gradient flows through both.
    """

    title: ClassVar[str] = "Bootstrapping"
    closed_form: ClassVar[bool] = False
    kind: Literal["bootstrapping"] = "bootstrapping"
    beta: float = pydantic.Field(0.95, ge=0, le=1)

    def pixel_loss(self, log_q: Logits, labels: LabelsOrTargets) -> PixelLoss:
        entropy = -(log_q.exp() * log_q).sum(1)
        return self.beta * cross_entropy(log_q, labels) + (1 - self.beta) * entropy


# --- another term -----------------------------------------------------------------------------------------------------


class EarlyLearning(Hooks):
    """CE + l ln(1 - <p, t>): early-learning regularisation holds p to t, what the network believed before it memorised noise.

    Liu et al. 2020, Early-learning regularization prevents memorization of noisy labels, NeurIPS, arXiv 2007.00151,
    l = 3 as for CIFAR-10. Their t is a running mean of every sample's own predictions. Of SSL4EO-S12 that would be
    103,793 x 4 x 264^2 x 9 values, and none for a patch that is cropped and flipped anew. So t is the prediction, on the
    same augmented patch, of a network whose weights are a running mean of the trained one's: where their ELR+
    takes its targets from (after Tarvainen & Valpola 2017, arXiv 1703.01780), with its `decay`, lowered to 1 - 1 / (step + 1)
    in the first steps as the latter do. t is a constant; a modality's targets are its own.

    <p, t> is bounded by 1 - 1e-4 (theirs: p by [1e-4, 1 - 1e-4]): there ln is finite and its gradient 0. Who has no averaged
    network at hand, such as a picture of the weights, gets the method at decay 0: t = p, detached.
    """

    title: ClassVar[str] = "ELR"
    closed_form: ClassVar[bool] = False
    kind: Literal["elr"] = "elr"
    weight: float = pydantic.Field(3.0, ge=0)  # l
    decay: float = pydantic.Field(0.997, ge=0, lt=1)  # of the averaged weights, per step

    @property
    def averages(self) -> float | None:
        return self.decay

    def extra(
        self, log_q: dict[str, Logits], labels: LabelsOrTargets, weights: dict[str, Weights],
        average: dict[str, Logits] | None, scope: Scope,
    ) -> Scalar | None:  # fmt: skip
        terms = []
        for name, own in log_q.items():
            target = (own if average is None else average[name]).detach().exp()
            agreement = (own.exp() * target).sum(1).clamp(max=1 - 1e-4)
            terms.append(weighted_mean(torch.log1p(-agreement), labels, weights[name], scope=scope))
        return self.weight * sum(terms)


# --- a selection of pixels --------------------------------------------------------------------------------------------


class SmallLoss(Hooks):
    """Cross-entropy and Dice over the share alpha of pixels with the smallest loss -ln p_y, by the modality's own network.

    The small-loss criterion on one modality: hard, no teacher, no second opinion; what CromSS adds modalities to. Its
    ancestor is the noise-robust pretraining of Cao & Huang (2023, Remote Sensing of Environment 284:113371, doi
    10.1016/j.rse.2022.113371): a building segmenter, warmed up on crowdsourced labels, judges by itself which of them to
    believe. Adapted: they replace what is not believed by the prediction and train again in rounds; here it is left out,
    and the share that is believed falls with alpha while one network trains on.
    """

    title: ClassVar[str] = "SmallLoss"
    reads: ClassVar[frozenset[str]] = SELECTS
    kind: Literal["small_loss"] = "small_loss"

    def label_weights(self, evidence: Evidence, cut: Cut) -> dict[str, Weights]:
        return {name: _kept(own, evidence, cut) for name, own in evidence.own.items()}


class CoTeaching(Hooks):
    """Each modality trains on the pixels that the OTHER's network finds to have small loss: the share alpha of them.

    Han et al. 2018, Co-teaching: robust training of deep neural networks with extremely noisy labels, NeurIPS, arXiv
    1804.06872, algorithm 1. Adapted: their two networks see one image from two random beginnings, ours two modalities of one
    place; the pixels are ranked over the scope, not per mini-batch of images; of several others, their mean loss decides.
    """

    title: ClassVar[str] = "Co-teaching"
    reads: ClassVar[frozenset[str]] = SELECTS
    together: ClassVar[bool] = True
    kind: Literal["co_teaching"] = "co_teaching"

    def label_weights(self, evidence: Evidence, cut: Cut) -> dict[str, Weights]:
        self.check(evidence.own)
        return {name: _kept(_mean_loss(others(evidence.own, name)), evidence, cut) for name in evidence.own}


class JointTraining(Hooks):
    """(1 - l) sum_d CE_d + l sum of KL(p_d || p_d') over both directions, on the share alpha of pixels where it is smallest.

    JoCoR. Wei et al. 2020, Combating noisy labels by agreement: a joint training method with co-regularization, CVPR, arXiv
    2003.02752; they choose l for every data set, their code has 0.1 where nothing is said. Neither side of the divergence is
    detached, the selection is common to all modalities, and the term takes the place of the consistency loss. Dice keeps
    weight 1. With more than two modalities the divergences of a student are averaged, as in the consistency loss.
    """

    title: ClassVar[str] = "JoCoR"
    reads: ClassVar[frozenset[str]] = SELECTS
    consistent: ClassVar[bool] = False
    together: ClassVar[bool] = True
    closed_form: ClassVar[bool] = False
    kind: Literal["jocor"] = "jocor"
    agreement: float = pydantic.Field(0.1, ge=0, le=1)  # l

    def label_weights(self, evidence: Evidence, cut: Cut) -> dict[str, Weights]:
        self.check(evidence.own)
        log_q = {name: q.detach() for name, q in evidence.log_q.items()}
        losses = [self.pixel_loss(q, evidence.labels) for q in log_q.values()]
        joint = sum(losses) + self.agreement * _divergence(log_q)
        weights = _kept(torch.exp(-joint), evidence, cut)  # the smallest loss is the highest confidence
        return dict.fromkeys(log_q, weights)

    def pixel_loss(self, log_q: Logits, labels: LabelsOrTargets) -> PixelLoss:
        return (1 - self.agreement) * cross_entropy(log_q, labels)

    def extra(
        self, log_q: dict[str, Logits], labels: LabelsOrTargets, weights: dict[str, Weights],
        average: dict[str, Logits] | None, scope: Scope,
    ) -> Scalar | None:  # fmt: skip
        common = next(iter(weights.values()))
        return self.agreement * weighted_mean(_divergence(log_q), labels, common, scope=scope)


def _kept(confidence: Confidence, evidence: Evidence, cut: Cut) -> Weights:
    return kept_labels(
        confidence, evidence.labels, cut.alpha, cut.scope, cut.per_class, classes=cut.classes, threshold=cut.threshold
    )


def _mean_loss(confidences: list[Confidence]) -> Confidence:
    """exp(-mean of -ln F): orders the pixels by the mean loss of several networks, the smallest first."""
    return confidences[0] if len(confidences) == 1 else torch.stack(confidences).log().mean(0).exp()


def _divergence(log_q: dict[str, Logits]) -> Tensor:
    """KL(p_d || p_d') of every pixel, summed over the ordered pairs, averaged over a modality's partners."""
    pairs = [(p.exp() * (p - q)).sum(1) for p, q in permutations(log_q.values(), 2)]
    return torch.stack(pairs).sum(0) / (len(log_q) - 1)
