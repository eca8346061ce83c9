"""From the trials of a sweep to its rows: a configuration, its score of every seed, its place.

The unit is the seed, that is one pretraining. The repeats of its downstream training are averaged first: they tell how
well that one encoder was measured, not how much encoders differ. Scores are fractions in [0, 1].
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

CEILING = "oracle"  # perfect selection, possible only where the clean labels are known
QUANTITIES = {"miou": "mIoU", "oa": "OA", "aa": "AA"}
Seed = int | str  # of the pretraining; `3@1` where the world has a seed of its own, 1
Column = tuple[str, str]  # (modality, mode), e.g. ("s2", "frozen")


class Cell(NamedTuple):
    """One quantity of one configuration: the value of each seed, already the mean over `repeats` downstream runs."""

    seeds: dict[Seed, float]
    repeats: int

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.seeds.values())))

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; one seed has none."""
        return float(np.std(list(self.seeds.values()), ddof=1)) if len(self.seeds) > 1 else None


class Row(NamedTuple):
    """One configuration: a `Cell` for every (modality, mode), and for the metric that ranks; `trials` made it."""

    name: str
    arm: str
    cells: dict[Column, Cell]
    score: Cell | None
    trials: list[dict[str, Any]]

    @property
    def label(self) -> str:
        return f"{self.name} (ceiling)" if self.is_ceiling else self.name

    @property
    def is_ceiling(self) -> bool:
        return self.arm.casefold().startswith(CEILING)

    @property
    def size(self) -> tuple[int, int]:
        """(seeds, repeats), the fewest of any cell; zero-shot is computed once and needs no repeats."""
        cells = [cell for (_, mode), cell in self.cells.items() if mode != "zero_shot"] or list(self.cells.values())
        return min((len(c.seeds) for c in cells), default=0), min((c.repeats for c in cells), default=0)


def parameters_of(trial: Mapping[str, Any]) -> dict[str, Any]:
    """What was varied in a trial, seeds aside. The modality of a single-modal network is no parameter: its S1 and its S2
    encoder are two columns of one row."""
    dropped = ("seed", "fusion.modality")
    return {key: value for key, value in trial["parameters"].items() if not key.endswith(dropped)}


def seed_of(trial: Mapping[str, Any]) -> Seed:
    """What tells independent trials of one configuration apart."""
    world = trial["parameters"].get("world.seed")
    return trial["seed"] if world is None else f"{trial['seed']}@{world}"


def configurations(trials: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Trials by configuration: what is left of (arm, parameters) without the seed.

    An arm whose parameters do not vary keeps its plain name; otherwise the parameters that vary are added.
    """
    trials = [dict(trial) for trial in trials]
    params = [parameters_of(trial) for trial in trials]
    siblings: dict[str, list[dict[str, Any]]] = {}
    for trial, own in zip(trials, params, strict=True):
        siblings.setdefault(trial["arm"], []).append(own)
    keys_of = {arm: varying(found) for arm, found in siblings.items()}
    groups: dict[str, list[dict[str, Any]]] = {}
    for trial, own in zip(trials, params, strict=True):
        keys = keys_of[trial["arm"]]
        text = ", ".join(f"{short(key, keys)}={brief(own[key])}" for key in keys if key in own)
        groups.setdefault(f"{trial['arm']} [{text}]" if text else trial["arm"], []).append(trial)
    return groups


def varying(siblings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parameters that are not the same in all of them, sorted; one that is absent is None."""
    first = siblings[0]
    keys = {key for own in siblings for key in own}
    return sorted(key for key in keys if any(own.get(key) != first.get(key) for own in siblings))


def short(key: str, keys: Sequence[str]) -> str:
    """The end of a dotted key, as long as it takes to be told from the others; `kind` and `end` name nothing alone."""
    parts = key.split(".")
    for length in range(1 + (parts[-1] in ("kind", "end")), len(parts)):
        tail = ".".join(parts[-length:])
        if sum(other == tail or other.endswith(f".{tail}") for other in keys) == 1:
            return tail
    return key


def brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rank(trials: Iterable[Mapping[str, Any]], metric: str = "mean", quantity: str = "miou") -> list[Row]:
    """Rows of all trials that were judged downstream, the best first, those without a score last.

    `metric` = mean (over `averaged` modalities) or one modality. It is taken frozen, or fine-tuned where nothing was
    judged frozen; never zero-shot, which not every encoder has.
    """
    groups = configurations(trials).items()  # named before the unfinished are left out, as everywhere else
    judged = {name: [trial for trial in group if trial["downstream"]] for name, group in groups}
    found = [(name, group, cells_of(group, quantity)) for name, group in judged.items() if group]
    mode = score_mode(cells for _, _, cells in found)
    parts = averaged([cells for *_, cells in found], mode) if metric == "mean" else (metric,)
    rows = [Row(name, group[0]["arm"], cells, mean_cell(cells, parts, mode), group) for name, group, cells in found]
    return sorted(rows, key=lambda row: (row.score is None, -row.score.mean if row.score else 0.0, row.name))


def score_mode(judged: Iterable[Mapping[Column, Cell]]) -> str:
    """The mode that ranks."""
    modes = {mode for cells in judged for _, mode in cells} - {"zero_shot"}
    return "frozen" if "frozen" in modes else min(modes, default="frozen")


def averaged(judged: Sequence[Mapping[Column, Cell]], mode: str) -> tuple[str, ...]:
    """The modalities that the metric `mean` is the mean of: those of every row that has several, so that a row with a third
    modality is compared in the two that all have."""
    own = [{modality for modality, its in cells if its == mode} for cells in judged]
    several = [modalities for modalities in own if len(modalities) > 1]
    return tuple(sorted(set.intersection(*several) if several else set().union(*own)))


def modalities_of(rows: Sequence[Row], metric: str = "mean") -> tuple[str, ...]:
    """What the score of these rows is the mean of."""
    judged = [row.cells for row in rows]
    return averaged(judged, score_mode(judged)) if metric == "mean" else (metric,)


def cells_of(trials: Iterable[Mapping[str, Any]], quantity: str) -> dict[Column, Cell]:
    """Every (modality, mode) that the trials of one configuration were judged in."""
    values: dict[Column, dict[Seed, list[float]]] = {}
    for trial in trials:
        for judged in trial["downstream"]:
            value = judged.get(quantity)
            if value is not None and math.isfinite(value):
                by_seed = values.setdefault((judged["modality"], judged["mode"]), {})
                by_seed.setdefault(seed_of(trial), []).append(float(value))
    return {
        key: Cell({s: float(np.mean(seeds[s])) for s in sorted(seeds, key=str)}, min(map(len, seeds.values())))
        for key, seeds in sorted(values.items())
    }


def mean_cell(cells: Mapping[Column, Cell], modalities: Sequence[str], mode: str) -> Cell | None:
    """The mean over modalities, seed by seed; None where one of them is missing."""
    parts = [cells.get((modality, mode)) for modality in modalities]
    if not parts or any(part is None for part in parts):
        return None
    seeds = sorted(set.intersection(*(set(part.seeds) for part in parts)), key=str)
    means = {seed: float(np.mean([part.seeds[seed] for part in parts])) for seed in seeds}
    return Cell(means, min(part.repeats for part in parts)) if means else None


def columns(rows: Sequence[Row]) -> list[Column]:
    """Every (modality, mode) that any row was judged in; frozen first, zero-shot last."""
    order = {"frozen": 0, "zero_shot": 2}
    return sorted({column for row in rows for column in row.cells}, key=lambda c: (order.get(c[1], 1), c[1], c[0]))


def leader(rows: Sequence[Row]) -> Row | None:
    """The best row that could be had without the clean labels."""
    return next((row for row in rows if row.score and not row.is_ceiling), None)
