"""A sweep as a designed experiment: one value for every (arm, parameters, seed), and pairs of them that differ in one thing."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cromss.trials.rows import Column, Seed, averaged, cells_of, mean_cell, parameters_of, score_mode, seed_of, varying

ARM = "arm"
Trial = Mapping[str, Any]


class Observation(NamedTuple):
    """What was measured once: `parameters` without the seed; `value` a fraction."""

    arm: str
    parameters: dict[str, Any]
    seed: Seed
    value: float

    def level(self, factor: str) -> Any:
        """Its arm, or its value of a parameter; None where it has none."""
        return self.arm if factor == ARM else self.parameters.get(factor)

    def rest(self, factor: str) -> str:
        """Everything but that factor and the seed, as text."""
        kept = {ARM: self.arm, **self.parameters}
        return json.dumps({key: value for key, value in kept.items() if key != factor}, sort_keys=True)


class Pair(NamedTuple):
    """Two observations that differ in one thing; `difference` = a - b."""

    seed: Seed
    parameters: dict[str, Any]  # what they share
    difference: float


def scores_of(trials: Iterable[Trial], metric: str = "mean", quantity: str = "miou") -> list[Observation]:
    """The score that ranks (rows.rank), of every seed of every configuration that has one."""
    groups = _grouped(trial for trial in trials if trial["downstream"])
    cells = [cells_of(group, quantity) for group in groups]
    mode = score_mode(cells)
    parts = averaged(cells, mode) if metric == "mean" else (metric,)
    found = [mean_cell(own, parts, mode) for own in cells]
    return [
        _observation(group, next(iter(one.seeds.values()))) for group, one in zip(groups, found, strict=True) if one
    ]


def column_of(trials: Iterable[Trial], column: Column, quantity: str = "miou") -> list[Observation]:
    """One column of the table: a quantity in one modality and mode."""
    return _observed(trials, lambda group: _first(cells_of(group, quantity).get(column)))


def noise_of(trials: Iterable[Trial], modality: str, key: str) -> list[Observation]:
    """How well a pretraining told wrong labels from right ones, e.g. `auroc_W`, where the clean labels were known."""
    return _observed(trials, lambda group: ((group[0].get("noise") or {}).get(modality) or {}).get(key))


def pairs_of(observations: Sequence[Observation], factor: str, a: Any, b: Any) -> list[Pair]:
    """Every pair with `factor` = a and = b that shares all the rest, its seed included."""
    other = {(one.rest(factor), one.seed): one for one in observations if one.level(factor) == b}
    found = []
    for one in observations:
        if one.level(factor) == a and (match := other.get((one.rest(factor), one.seed))):
            shared = {key: value for key, value in {ARM: one.arm, **one.parameters}.items() if key != factor}
            found.append(Pair(one.seed, shared, one.value - match.value))
    return found


def by_seed(pairs: Iterable[Pair | Observation]) -> dict[Seed, float]:
    """One value per seed. Pairs of one seed share its initial weights, and its world: they are no independent witnesses,
    so they are averaged first."""
    values: dict[Seed, list[float]] = {}
    for one in pairs:
        values.setdefault(one.seed, []).append(one.difference if isinstance(one, Pair) else one.value)
    return {seed: float(np.mean(values[seed])) for seed in sorted(values, key=str)}


def factors_of(pairs: Sequence[Pair]) -> dict[str, list[Any]]:
    """What varies among the pairs, with its levels in order. A parameter that follows from another (the epochs from the
    number of places, the rate from the kind of noise) is no factor of its own."""
    levels = {key: [json.dumps(pair.parameters.get(key)) for pair in pairs]
              for key in (varying([pair.parameters for pair in pairs]) if pairs else [])}  # fmt: skip
    keys = sorted(levels, key=lambda key: (not key.startswith("world."), key))
    kept = [
        key for place, key in enumerate(keys)
        if not any(_follows(levels[key], levels[other]) and (there < place or not _follows(levels[other], levels[key]))
                   for there, other in enumerate(keys) if other != key)
    ]  # fmt: skip
    return {key: ordered(pair.parameters.get(key) for pair in pairs) for key in kept}


def _follows(levels: Sequence[str], other: Sequence[str]) -> bool:
    """Whether each level of `other` has one of `levels`."""
    return len(set(zip(other, levels, strict=True))) == len(set(other))


def ordered(levels: Iterable[Any]) -> list[Any]:
    """Each level once: numbers by size, the rest by name."""
    unique = {json.dumps(level, sort_keys=True): level for level in levels}
    return sorted(
        unique.values(), key=lambda level: (not is_number(level), level if is_number(level) else 0, str(level))
    )


def is_number(level: Any) -> bool:
    return isinstance(level, (int, float)) and not isinstance(level, bool)


def _observed(trials: Iterable[Trial], value: Callable[[list[Trial]], float | None]) -> list[Observation]:
    groups = _grouped(trials)
    found = [value(group) for group in groups]
    return [_observation(group, float(one)) for group, one in zip(groups, found, strict=True)
            if one is not None and np.isfinite(one)]  # fmt: skip


def _grouped(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Trials that are one observation: the S1 and the S2 network of a single-modal arm are two trials."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(json.dumps([trial["arm"], parameters_of(trial), seed_of(trial)], sort_keys=True), []).append(
            trial
        )
    return [groups[key] for key in sorted(groups)]


def _observation(group: Sequence[Trial], value: float) -> Observation:
    return Observation(group[0]["arm"], parameters_of(group[0]), seed_of(group[0]), value)


def _first(cell: Any) -> float | None:
    return next(iter(cell.seeds.values())) if cell else None
