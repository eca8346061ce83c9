"""From measured costs to a law of growth, and to a sentence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Law:
    """cost(x) = constant + factor * x ** exponent. `error`: the largest relative distance of a measurement from it."""

    constant: float
    factor: float
    exponent: float
    error: float

    def __call__(self, x: float | np.ndarray) -> float | np.ndarray:
        return self.constant + self.factor * np.asarray(x, float) ** self.exponent

    def formula(self, unit: str, amount: Callable[[float], str]) -> str:
        """In words: `pairs^0.97`, or, with a constant, `20 ms + 1.4 ms x classes`. `amount` writes a cost."""
        if not self.constant:
            return f"{unit}^{self.exponent:.2f}"
        power = {1: f"x {unit}", -1: f"/ {unit}"}.get(self.exponent, f"x {unit}^{self.exponent:g}")
        return f"{amount(self.constant)} + {amount(self.factor)} {power}"


def fit(x: Sequence[float], cost: Sequence[float], work: float) -> Law:
    """The better of two laws with two numbers each: b x^p, and a + b x^work with a >= 0.

    x, cost  positive, as many of each, at least two different x
    work     the power of x by which the arithmetic grows: what a + b x^p would need a third number for, which a handful
             of points on a busy machine cannot tell from noise

    Both are fitted to relative errors, and the one with the smaller root mean square wins; two points fit either, and
    the plain power is taken.
    """
    x, cost = np.asarray(x, float), np.asarray(cost, float)
    assert len(x) == len(cost)
    assert (cost > 0).all()
    plain, with_constant = power(x, cost), _with_constant(x, cost, work)
    if len(x) > 2 and with_constant is not None and _rms(with_constant, x, cost) < _rms(plain, x, cost):
        return with_constant
    return plain


def power(x: Sequence[float], cost: Sequence[float]) -> Law:
    """b x^p by the straight line through the logarithms; `exponent` is the slope of the log-log plot."""
    x, cost = np.asarray(x, float), np.asarray(cost, float)
    slope, offset = np.polyfit(np.log(x), np.log(cost), 1)
    return _judged(0.0, float(np.exp(offset)), float(slope), x, cost)


def _with_constant(x: np.ndarray, cost: np.ndarray, exponent: float) -> Law | None:
    """a + b x^exponent; None unless both are positive: no step takes less than nothing."""
    terms = np.stack([np.ones_like(x), x**exponent], 1) / cost[:, None]
    (constant, factor), *_ = np.linalg.lstsq(terms, np.ones_like(x), rcond=None)
    if constant <= 0 or factor <= 0:
        return None
    return _judged(float(constant), float(factor), exponent, x, cost)


def _judged(constant: float, factor: float, exponent: float, x: np.ndarray, cost: np.ndarray) -> Law:
    law = Law(constant, factor, exponent, 0.0)
    return Law(constant, factor, exponent, float(np.abs(law(x) / cost - 1).max()))


def _rms(law: Law, x: np.ndarray, cost: np.ndarray) -> float:
    return float(np.sqrt(np.mean((law(x) / cost - 1) ** 2)))


def duration(seconds: float) -> str:
    """`1.2 s`, `34 ms`, `5.6 us`: three figures at most."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def volume(size: float) -> str:
    """`1.2 GB`, `34 MB`, `5.6 kB`: three figures at most."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.3g} B"
