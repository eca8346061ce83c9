"""Before a sweep over a stated budget starts: what it will cost, whether that fits, and a yes."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Estimate(Protocol):
    """What a sweep is expected to cost; `cromss.costs.estimate` makes one."""

    device_hours: float

    def lines(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Limit:
    """What a sweep may spend: device-hours over all its attempts, `price` an hour, `yes` said beforehand."""

    hours: float
    price: float | None = None
    yes: bool = False

    def check(self) -> None:
        """Raises ValueError for a budget of nothing, and where nobody can be asked."""
        if not (math.isfinite(self.hours) and self.hours > 0):
            raise ValueError(f"--budget {self.hours:g}: must be a number of device-hours above 0")
        if self.price is not None and not (math.isfinite(self.price) and self.price >= 0):
            raise ValueError(f"--price {self.price:g}: must be what a device-hour costs, 0 or more")
        if not self.yes and not sys.stdin.isatty():
            raise ValueError(
                f"--budget {self.hours:g}: a sweep over a budget asks before it starts, and there is no terminal to ask "
                f"on; add --yes"
            )

    def check_left(self, spent: float, unit: str) -> None:
        """Raises ValueError where earlier attempts have spent it all."""
        if spent >= self.hours:
            raise ValueError(f"--budget {self.hours:g}: {spent:.3g} {unit} are spent already; name more to go on")


def told(limit: Limit, estimate: Estimate, trials: int, spent: float, unit: str) -> list[str]:
    """The estimate of the `trials` that are to be run, and how it compares with what is left of the budget."""
    left, wanted = limit.hours - spent, estimate.device_hours
    fits = wanted <= left
    count = trials if fits else int(trials * left / wanted)
    budget = f"budget: {limit.hours:g} {unit}{_money(limit.hours, limit.price)}"
    if spent:
        budget += f", {spent:.3g} spent, {left:.3g} left"
    if fits:
        verdict = f"fits: all {trials} trials are expected to finish"
    else:
        verdict = f"does not fit: about {count} of {trials} trials will finish, --resume with a larger --budget goes on"
    return [*estimate.lines(), budget, f"the estimate of {wanted:.3g} {unit} {verdict}"]


def agreed(limit: Limit) -> bool:
    """Whether the sweep may start. Asks on the terminal unless --yes was given; anything but y and yes means no."""
    if limit.yes:
        return True
    try:
        return input("Proceed? [y/N] ").strip().casefold() in ("y", "yes")
    except EOFError:
        return False


def spending(hours: float, unit: str, limit: Limit | None, left: int, trials: int) -> str:
    """How much was spent, and how many trials are left: the first line of a summary."""
    if limit is None:
        return f"spent {hours:.3g} {unit}"
    money = _money(hours, limit.price)
    rest = (
        f"{left} of {trials} trials are left, --resume with a larger --budget goes on" if left else "no trial is left"
    )
    return f"spent {hours:.3g} of {limit.hours:g} {unit}{money}; {rest}"


def _money(hours: float, price: float | None) -> str:
    return f" ({hours * price:,.2f} at {price:g} an hour)" if price is not None else ""
