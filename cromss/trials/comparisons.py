"""One row against another, seed by seed: how much, and what may be said about it."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from cromss.trials import statistics
from cromss.trials.rows import Cell, Row, Seed, leader
from cromss.trials.words import points


class Difference(NamedTuple):
    """a - b over their common seeds, with a 95 % paired t interval (None for one seed or equal differences), the 95 %
    bootstrap interval (None below three seeds) and p of the paired t-test."""

    values: dict[Seed, float]
    mean: float
    interval: tuple[float, float] | None
    bootstrap: tuple[float, float] | None = None
    p: float | None = None


def difference(a: Cell, b: Cell) -> Difference | None:
    """a - b, seed by seed; None without a common seed."""
    values = {seed: a.seeds[seed] - b.seeds[seed] for seed in sorted(a.seeds.keys() & b.seeds.keys(), key=str)}
    return difference_of(values) if values else None


def difference_of(values: dict[Seed, float]) -> Difference:
    """The same of paired differences at hand."""
    array = list(values.values())
    return Difference(
        values, float(np.mean(array)), statistics.t_interval(array), statistics.bootstrap_interval(array),
        statistics.paired_t(array),
    )  # fmt: skip


def verdict(a: Cell, b: Cell) -> str:
    """What may be said about a against b, in one clause."""
    delta = difference(a, b)
    if delta is None:
        return "not comparable: no common seed"
    n = len(delta.values)
    direction = "higher" if delta.mean > 0 else "lower"
    if delta.interval is None and n == 1:
        return f"{points(abs(delta.mean))} points {direction}, but one seed says nothing about noise"
    if delta.interval is None and abs(delta.mean) < 1e-12:
        return f"no difference in any of {n} seeds"
    if delta.interval is None:
        return f"the same difference of {points(delta.mean, sign=True)} points in all {n} seeds: no interval"
    low, high = (points(bound, sign=True) for bound in delta.interval)
    if delta.interval[0] <= 0 <= delta.interval[1]:
        return f"difference within seed noise ({n} seeds, {points(delta.mean, sign=True)} [{low}, {high}] points)"
    return f"{direction} by {points(abs(delta.mean))} points [{low}, {high}] ({n} seeds)"


def baseline(name: str, names: Collection[str]) -> str | None:
    """The row that `name` differs from in its method alone: `midF` of `CromSS-midF` and of `Co-teaching-midF`. None for a
    baseline itself. Of a row with parameters, the one with the same, or the one without."""
    arm, bracket, rest = name.partition(" [")
    while "-" in arm:
        arm = arm.partition("-")[2]
        for candidate in (f"{arm}{bracket}{rest}", arm):
            if candidate in names:
                return candidate
    return None


def pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The comparisons worth printing: each CromSS arm against the same arm without selection, then the other methods
    against theirs, then the leader against every other row. The ceiling leads nothing."""
    by_name = {row.name: row for row in rows}
    chosen = [(row, by_name[plain]) for row in rows if (plain := baseline(row.name, by_name))]
    chosen.sort(key=lambda pair: not pair[0].name.startswith("CromSS-"))
    known = [{a.name, b.name} for a, b in chosen]
    if best := leader(rows):
        chosen += [(best, row) for row in rows if row is not best and {best.name, row.name} not in known]
    return chosen
