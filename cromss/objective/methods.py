"""Methods for noisy labels: the paper's, none at all (every baseline), the oracle's, and the rivals (rivals.py)."""

from typing import Annotated, ClassVar, Literal

import pydantic

from cromss.objective.confidence import IGNORE, Confidence
from cromss.objective.hooks import SELECTION, Cut, Evidence, Hooks
from cromss.objective.rivals import (
    Bootstrapping,
    CoTeaching,
    EarlyLearning,
    GeneralisedCrossEntropy,
    JointTraining,
    SmallLoss,
    SymmetricCrossEntropy,
)
from cromss.objective.weights import Share, Weights, entropy_weights, label_weights


class CrossModal(Hooks):
    """The paper's sample selection: eq. 2, eq. 3 and the entropy weights."""

    title: ClassVar[str] = "CromSS"
    reads: ClassVar[frozenset[str]] = SELECTION
    kind: Literal["cromss"] = "cromss"

    def label_weights(self, evidence: Evidence, cut: Cut) -> dict[str, Weights]:
        return {
            name: label_weights(
                f, evidence.labels, cut.alpha, cut.scope, cut.per_class, classes=cut.classes, threshold=cut.threshold
            )
            for name, f in evidence.enhanced.items()
        }

    def entropy_weights(self, confidence: Confidence, gamma: Share) -> Weights:
        return entropy_weights(confidence, gamma)


class Plain(Hooks):
    """Every label and every teacher counts alike: validation, and the baselines without selection."""

    title: ClassVar[str] = ""
    kind: Literal["plain"] = "plain"


class Oracle(Hooks):
    """Exactly the right labels count: what a perfect selection would reach. Needs clean labels."""

    title: ClassVar[str] = "oracle"
    kind: Literal["oracle"] = "oracle"

    def label_weights(self, evidence: Evidence, cut: Cut) -> dict[str, Weights]:
        if evidence.clean is None:
            raise ValueError(
                "objective.method.kind=oracle: needs clean labels, which this data has not; "
                "pretrain on the synthetic Earth or take cromss or plain"
            )
        right = (evidence.labels == evidence.clean) & (evidence.labels != IGNORE)
        return {name: right.to(own.dtype) for name, own in evidence.own.items()}


# In the order of the table.
RIVALS: tuple[type[Hooks], ...] = (
    SymmetricCrossEntropy,
    GeneralisedCrossEntropy,
    Bootstrapping,
    EarlyLearning,
    CoTeaching,
    JointTraining,
    SmallLoss,
)

Method = Annotated[
    CrossModal
    | Plain
    | Oracle
    | SymmetricCrossEntropy
    | GeneralisedCrossEntropy
    | Bootstrapping
    | EarlyLearning
    | CoTeaching
    | JointTraining
    | SmallLoss,
    pydantic.Field(discriminator="kind"),
]
