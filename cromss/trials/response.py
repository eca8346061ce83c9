"""Response curves: a score against a parameter, per arm, with its interval over seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cromss.trials.observations import by_seed, column_of, is_number, noise_of, ordered
from cromss.trials.rows import QUANTITIES, Column, parameters_of
from cromss.trials.statistics import t_interval

NOISE = {"auroc": "auroc_W", "auprc": "auprc_W"}  # of the label weights


class Point(NamedTuple):
    """Mean over `n` seeds at `x`, with its 95 % t interval (NaN, NaN for one seed). A seed that was measured under several
    settings of the other parameters counts once, with their mean."""

    x: Any
    mean: float
    low: float
    high: float
    n: int


def response(
    trials: Sequence[Mapping[str, Any]], parameter: str, quantity: str = "miou", column: Column = ("s2", "frozen")
) -> dict[str, list[Point]]:
    """arm -> its points, by size (or name) of the parameter; arms without that parameter are left out.

    quantity   miou | oa | aa in `column`; auroc | auprc of the label weights, or any other key of a trial's `noise`, in the
               modality of `column`
    """
    if quantity in QUANTITIES:
        found = column_of(trials, column, quantity)
    else:
        found = noise_of(trials, column[0], NOISE.get(quantity, quantity))
    curves: dict[str, list[Point]] = {}
    for arm in sorted({one.arm for one in found}):
        own = [one for one in found if one.arm == arm and parameter in one.parameters]
        for x in ordered(one.parameters[parameter] for one in own):
            values = list(by_seed(one for one in own if one.parameters[parameter] == x).values())
            low, high = t_interval(values) or (math.nan, math.nan)
            curves.setdefault(arm, []).append(Point(x, float(np.mean(values)), low, high, len(values)))
    return curves


def responding(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parameters worth a curve: numbers, of which some arm has two at least."""
    levels: dict[tuple[str, str], set[Any]] = {}
    for trial in trials:
        for key, value in parameters_of(trial).items():
            levels.setdefault((trial["arm"], key), set()).add(value if is_number(value) else None)
    return sorted({key for (_, key), values in levels.items() if len(values - {None}) > 1})
