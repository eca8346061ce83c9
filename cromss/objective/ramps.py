"""Ramps: the way from no selection to full selection, 0 to 1 over the epochs (section 3.3).

The network must have learned something before its confidence is worth listening to.
"""

import math
from typing import Annotated, Literal

import pydantic

from cromss.settings import Settings

PAPER_EPOCHS = 80  # of the paper's 100


class _Ramp(Settings):
    """A ramp over `epochs`. Left out, it follows the run (`objective.ramp_epochs`); standing alone, the paper's 80."""

    epochs: int | None = pydantic.Field(None, ge=1)

    def over(self, epochs: int) -> "_Ramp":
        """This ramp with `epochs` filled in where the configuration left it open."""
        return self if self.epochs else self.model_copy(update={"epochs": epochs})

    def _done(self, epoch: float) -> float:
        """The share of the ramp that lies behind, in [0, 1]."""
        return min(1.0, epoch / (self.epochs or PAPER_EPOCHS))


class Exponential(_Ramp):
    """r = exp(-sharpness (1 - e/T)^2): the paper's; starts at exp(-5) = 0.0067, not at 0."""

    kind: Literal["exponential"] = "exponential"
    sharpness: float = pydantic.Field(5.0, gt=0)

    def __call__(self, epoch: float) -> float:
        return math.exp(-self.sharpness * (1 - self._done(epoch)) ** 2)


class Anchored(_Ramp):
    """The exponential ramp stretched to start at exactly 0, as the paper's words have it: (r - r(0)) / (1 - r(0))."""

    kind: Literal["anchored"] = "anchored"
    sharpness: float = pydantic.Field(5.0, gt=0)

    def __call__(self, epoch: float) -> float:
        start = math.exp(-self.sharpness)
        return (math.exp(-self.sharpness * (1 - self._done(epoch)) ** 2) - start) / (1 - start)


class Linear(_Ramp):
    """r = e/T."""

    kind: Literal["linear"] = "linear"

    def __call__(self, epoch: float) -> float:
        return self._done(epoch)


class Step(_Ramp):
    """0 before epoch T, 1 from then on."""

    kind: Literal["step"] = "step"

    def __call__(self, epoch: float) -> float:
        return float(self._done(epoch) == 1)


class Constant(_Ramp):
    """No ramp: the same value at every epoch, whatever `epochs`."""

    kind: Literal["constant"] = "constant"
    value: float = pydantic.Field(1.0, ge=0, le=1)

    def __call__(self, epoch: float) -> float:
        return self.value


Ramp = Annotated[Exponential | Anchored | Linear | Step | Constant, pydantic.Field(discriminator="kind")]
