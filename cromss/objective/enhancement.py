"""Enhancement: how far a modality's confidence is tempered by what the others think of the same pixel (eq. 2).

The paper lets every modality listen to every other alike and remarks that Sentinel-1, the weak one, could take more from
Sentinel-2 than it gives. `trust` says so: one exponent per teacher.
"""

from typing import Annotated, ClassVar, Literal

import pydantic
import torch

from cromss.objective.confidence import Confidence, enhance, enhance_all
from cromss.settings import Settings

Confidences = dict[str, Confidence]  # by modality


class _Alike(Settings):
    """Every teacher is heard alike."""

    trust: ClassVar[dict[str, float]] = {}


class Agreement(_Alike):
    """F'(d) = F(d) (1 + F(d')) / 2 (eq. 2), F(d') being the mean of the others where there are several: the paper."""

    kind: Literal["agreement"] = "agreement"

    def __call__(self, confidences: Confidences) -> Confidences:
        return enhance_all(confidences)

    def simplest(self, modalities: tuple[str, ...]) -> "Agreement | NoEnhancement":
        """The member of the union that says the same of these modalities with the fewest words."""
        return self if len(modalities) > 1 else NoEnhancement()


class NoEnhancement(_Alike):
    """F'(d) = F(d): each modality by its own confidence."""

    kind: Literal["none"] = "none"

    def __call__(self, confidences: Confidences) -> Confidences:
        return confidences

    def simplest(self, modalities: tuple[str, ...]) -> "NoEnhancement":
        return self


class Trust(Settings):
    """F'(d) = F(d) ((1 + F(d')) / 2)^t(d'): eq. 2 with an exponent t >= 0 per TEACHER d' (1 where not named).

    t = 1 is eq. 2 to the last bit, t = 0 does not hear the teacher, t > 1 lets its doubt count more than once. Of several
    teachers, both the confidence and the exponent are means weighted by t, so that equal trust is the mean of the others
    as in eq. 2, and a teacher of trust 0 is as good as absent:

        F'(d) = F(d) ((1 + sum t F / sum t) / 2)^(sum t^2 / sum t),   sums over d' != d
    """

    kind: Literal["trust"] = "trust"
    trust: dict[str, Annotated[float, pydantic.Field(ge=0)]] = {}

    def __call__(self, confidences: Confidences) -> Confidences:
        return {
            student: self._tempered(own, {name: f for name, f in confidences.items() if name != student})
            for student, own in confidences.items()
        }

    def simplest(self, modalities: tuple[str, ...]) -> "Agreement | NoEnhancement | Trust":
        told = {name: self.of(name) for name in modalities if self.of(name) != 1}
        if not told:
            return Agreement().simplest(modalities)
        return Trust(trust=told) if len(modalities) > 1 and any(map(self.of, modalities)) else NoEnhancement()

    def of(self, teacher: str) -> float:
        """The exponent of this teacher."""
        return self.trust.get(teacher, 1.0)

    def _tempered(self, own: Confidence, others: Confidences) -> Confidence:
        heard = {name: f for name, f in others.items() if self.of(name) > 0}
        if not heard:
            return own
        trust = [self.of(name) for name in heard]
        if len(set(trust)) == 1:
            other, exponent = torch.stack(list(heard.values())).mean(0), trust[0]
        else:
            other = sum(t * f for t, f in zip(trust, heard.values(), strict=True)) / sum(trust)
            exponent = sum(t * t for t in trust) / sum(trust)
        return enhance(own, other) if exponent == 1 else own * ((1 + other) / 2) ** exponent


Enhancement = Annotated[Agreement | NoEnhancement | Trust, pydantic.Field(discriminator="kind")]
