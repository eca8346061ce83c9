"""From the trials of a sweep to statements that a scientist can trust: means over seeds, paired differences, verdicts.

The unit is the seed, that is one pretraining. The repeats of its downstream training are averaged first: they tell how
well that one encoder was measured, not how much encoders differ. Scores are fractions in [0, 1], text is in percent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from cromss.tracking import Aggregate

CEILING = "oracle"  # perfect selection, possible only where the clean labels are known
CONFIDENCE = 0.95
MODALITIES = {"mean": ("s1", "s2"), "s1": ("s1",), "s2": ("s2",)}  # what a sweep metric is the mean of

# Table 1 of the paper: mIoU in percent, (mean, std) of 3 repeats; frozen, then fine-tuned, S1, then S2
_TABLE1 = {
    "random": ((29.16, 0.06), (28.36, 0.22), (31.50, 0.14), (33.56, 0.28)),
    "DINO": (None, None, (37.81, 0.08), (36.95, 0.55)),
    "MoCo": ((34.25, 0.27), (31.80, 0.46), (37.67, 0.57), (34.86, 0.63)),
    "single-modal": ((34.77, 0.30), (34.13, 0.19), (40.88, 0.07), (41.06, 0.24)),
    "midF": ((34.64, 0.48), (33.86, 0.16), (41.52, 0.35), (41.17, 0.28)),
    "lateF": ((34.15, 0.14), (34.58, 0.48), (41.59, 0.75), (41.76, 0.76)),
    "CromSS-midF": ((34.38, 0.02), (35.17, 0.63), (42.89, 0.35), (42.58, 0.34)),
    "CromSS-lateF": ((34.80, 0.37), (33.94, 0.55), (41.12, 0.11), (42.55, 0.36)),
}
_COLUMNS = (("s1", "frozen"), ("s1", "finetuned"), ("s2", "frozen"), ("s2", "finetuned"))
PAPER: dict[str, dict[tuple[str, str], tuple[float, float]]] = {
    arm: {column: cell for column, cell in zip(_COLUMNS, cells, strict=True) if cell} for arm, cells in _TABLE1.items()
}


class Cell(NamedTuple):
    """One quantity of one configuration: the value of each seed, already the mean over `repeats` downstream runs."""

    seeds: dict[int, float]
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
    cells: dict[tuple[str, str], Cell]
    score: Cell | None
    trials: list[dict[str, Any]]

    @property
    def label(self) -> str:
        return f"{self.name} (ceiling)" if self.is_ceiling else self.name

    @property
    def is_ceiling(self) -> bool:
        return self.arm.casefold().startswith(CEILING)


class Difference(NamedTuple):
    """a - b over their common seeds, with a 95 % paired t interval (None for one seed or equal differences)."""

    values: dict[int, float]
    mean: float
    interval: tuple[float, float] | None


def configurations(trials: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Trials by configuration: what is left of (arm, parameters) without the seed.

    An arm whose parameters do not vary keeps its plain name; otherwise the parameters that vary are added. The modality
    of a single-modal network is no parameter here: its S1 and its S2 encoder are two columns of one row.
    """
    trials = [dict(trial) for trial in trials]
    params = [_parameters(trial) for trial in trials]
    siblings: dict[str, list[dict[str, Any]]] = {}
    for trial, own in zip(trials, params, strict=True):
        siblings.setdefault(trial["arm"], []).append(own)
    varying = {arm: _varying(found) for arm, found in siblings.items()}
    groups: dict[str, list[dict[str, Any]]] = {}
    for trial, own in zip(trials, params, strict=True):
        keys = varying[trial["arm"]]
        text = ", ".join(f"{_short(key, keys)}={_brief(own[key])}" for key in keys if key in own)
        groups.setdefault(f"{trial['arm']} [{text}]" if text else trial["arm"], []).append(trial)
    return groups


def _varying(siblings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parameters that are not the same in all of them, sorted; one that is absent is None."""
    first = siblings[0]
    keys = {key for own in siblings for key in own}
    return sorted(key for key in keys if any(own.get(key) != first.get(key) for own in siblings))


def _parameters(trial: Mapping[str, Any]) -> dict[str, Any]:
    dropped = ("seed", "fusion.modality")
    return {key: value for key, value in trial["parameters"].items() if not key.endswith(dropped)}


def _short(key: str, keys: Sequence[str]) -> str:
    """The end of a dotted key, as long as it takes to be told from the others; `kind` and `end` name nothing alone."""
    parts = key.split(".")
    for length in range(1 + (parts[-1] in ("kind", "end")), len(parts)):
        tail = ".".join(parts[-length:])
        if sum(other == tail or other.endswith(f".{tail}") for other in keys) == 1:
            return tail
    return key


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rank(trials: Iterable[Mapping[str, Any]], metric: str = "mean", quantity: str = "miou") -> list[Row]:
    """Rows of all trials that were judged downstream, the best first, those without a score last.

    `metric` = mean (of S1 and S2) | s1 | s2; it is taken frozen, or fine-tuned where nothing was judged frozen.
    """
    groups = configurations(trials).items()  # named before the unfinished are left out, as everywhere else
    judged = {name: [trial for trial in group if trial["downstream"]] for name, group in groups}
    found = [(name, group, _cells(group, quantity)) for name, group in judged.items() if group]
    modes = {mode for _, _, cells in found for _, mode in cells}
    mode = "frozen" if "frozen" in modes else min(modes, default="frozen")
    rows = [Row(name, group[0]["arm"], cells, _score(cells, metric, mode), group) for name, group, cells in found]
    return sorted(rows, key=lambda row: (row.score is None, -row.score.mean if row.score else 0.0, row.name))


def _cells(trials: Sequence[Mapping[str, Any]], quantity: str) -> dict[tuple[str, str], Cell]:
    values: dict[tuple[str, str], dict[int, list[float]]] = {}
    for trial in trials:
        for judged in trial["downstream"]:
            value = judged.get(quantity)
            if value is not None and math.isfinite(value):
                by_seed = values.setdefault((judged["modality"], judged["mode"]), {})
                by_seed.setdefault(trial["seed"], []).append(float(value))
    return {
        key: Cell({seed: float(np.mean(found)) for seed, found in sorted(seeds.items())}, min(map(len, seeds.values())))
        for key, seeds in sorted(values.items())
    }


def _score(cells: Mapping[tuple[str, str], Cell], metric: str, mode: str) -> Cell | None:
    parts = [cells.get((modality, mode)) for modality in MODALITIES[metric]]
    if any(part is None for part in parts):
        return None
    seeds = sorted(set.intersection(*(set(part.seeds) for part in parts)))
    means = {seed: float(np.mean([part.seeds[seed] for part in parts])) for seed in seeds}
    return Cell(means, min(part.repeats for part in parts)) if means else None


def difference(a: Cell, b: Cell) -> Difference | None:
    """a - b, seed by seed; None without a common seed."""
    values = {seed: a.seeds[seed] - b.seeds[seed] for seed in sorted(a.seeds.keys() & b.seeds.keys())}
    if not values:
        return None
    array = np.array(list(values.values()))
    mean, n = float(array.mean()), len(array)
    error = float(array.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if error < 1e-12:
        return Difference(values, mean, None)
    reach = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return Difference(values, mean, (mean - reach, mean + reach))


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


def pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The comparisons worth printing: each CromSS arm against the same arm without selection, then the leader against
    every other row. The ceiling leads nothing."""
    by_name = {row.name: row for row in rows}
    chosen = [
        (row, by_name[plain])
        for row in rows
        if row.name.startswith("CromSS-") and (plain := row.name.removeprefix("CromSS-")) in by_name
    ]
    known = [{a.name, b.name} for a, b in chosen]
    if best := leader(rows):
        chosen += [(best, row) for row in rows if row is not best and {best.name, row.name} not in known]
    return chosen


def leader(rows: Sequence[Row]) -> Row | None:
    """The best row that could be had without the clean labels."""
    return next((row for row in rows if row.score and not row.is_ceiling), None)


def headline(rows: Sequence[Row], metric: str = "mean") -> list[str]:
    """Computed sentences: who leads, by how much over the next, and every CromSS arm against its own baseline."""
    best = leader(rows)
    if best is None:
        return ["No configuration has a complete score yet."]
    text = [f"{best.name} leads with {percent(best.score)} % {metric_title(metric)} mIoU ({counts(best.score)})."]
    rival = next((row for row in rows if row.score and not row.is_ceiling and row is not best), None)
    selecting = [(a, b) for a, b in pairs(rows) if a.name.startswith("CromSS-") and a.score and b.score]
    known = [{a.name, b.name} for a, b in selecting]
    if rival and {best.name, rival.name} not in known:
        text.append(f"{best.name} against {rival.name}, the next: {verdict(best.score, rival.score)}.")
    plain = [(a, b) for a, b in selecting if b.name == a.name.removeprefix("CromSS-")]
    return text + [f"{a.name} against {b.name}: {verdict(a.score, b.score)}." for a, b in plain]


def aggregates(trials: Iterable[Mapping[str, Any]]) -> dict[str, Aggregate]:
    """Mean and std over seeds of every configuration, for the tracking sink: `test/s2/frozen/miou`, `..._std`."""
    trials = list(trials)
    found: dict[str, Aggregate] = {}
    for quantity in ("miou", "oa", "aa"):
        for row in rank(trials, quantity=quantity):
            metrics = found[row.name].metrics if row.name in found else {}
            for (modality, mode), cell in row.cells.items():
                name = f"test/{modality}/{mode}/{quantity}"
                metrics[name] = cell.mean
                if cell.std is not None:
                    metrics[f"{name}_std"] = cell.std
            if row.name not in found:
                found[row.name] = Aggregate(metrics, {"arm": row.arm} | _parameters(row.trials[0]), *_size(row))
    return found


# --- words and tables ---------------------------------------------------------------------------------------------


def percent(cell: Cell | None) -> str:
    """`42.1 ± 0.3`, without the deviation for one seed."""
    if cell is None:
        return "-"
    return f"{100 * cell.mean:.1f}" + (f" ± {100 * cell.std:.1f}" if cell.std is not None else "")


def points(value: float, *, sign: bool = False) -> str:
    """A difference of scores in percentage points; the minus sign is typographic."""
    return f"{100 * value:{'+' if sign else ''}.1f}".replace("-", "\N{MINUS SIGN}")


def counts(cell: Cell) -> str:
    n, repeats = len(cell.seeds), cell.repeats
    return f"{n} seed{'s' * (n != 1)} x {repeats} repeat{'s' * (repeats != 1)}"


def metric_title(metric: str) -> str:
    return {"mean": "mean S1/S2", "s1": "S1", "s2": "S2"}[metric]


def column_title(column: tuple[str, str]) -> str:
    modality, mode = column
    return f"{modality.upper()} {'fine-tuned' if mode == 'finetuned' else mode}"


def columns(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Every (modality, mode) that any row was judged in; frozen before fine-tuned."""
    return sorted({column for row in rows for column in row.cells}, key=lambda c: (c[1] != "frozen", c[1], c[0]))


def paper_text(name: str, column: tuple[str, str]) -> str:
    """The paper's number for an arm, `42.89 ± 0.35`, or nothing."""
    cell = {arm.casefold(): cells for arm, cells in PAPER.items()}.get(name.casefold(), {}).get(column)
    return f"{cell[0]:.2f} ± {cell[1]:.2f}" if cell else ""


def paper_applies(sweep: Mapping[str, Any], trials: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the paper's Table 1 was measured as these trials were: DFC2020 itself, judged by a PSPNet of depth 3."""
    judged = [one for trial in trials for one in trial["downstream"]]
    same = all(
        (one.get("scheme"), one.get("head"), one.get("head_depth")) == ("dfc2020", "pspnet", 3) for one in judged
    )
    return bool(sweep.get("paper_rows")) and bool(judged) and same


def table(rows: Sequence[Row], metric: str = "mean", *, paper: bool = False) -> tuple[list[str], list[list[str]]]:
    """The ranking as (header, lines) of text."""
    shown = columns(rows)
    header = ["", "configuration", *map(column_title, shown), metric_title(metric), "seeds x repeats"]
    lines = []
    for place, row in enumerate(rows, 1):
        cells = [percent(row.cells.get(column)) for column in shown]
        if paper:
            numbers = [paper_text(row.arm, column) for column in shown]
            cells = [f"{own} (paper {n})" if n else own for own, n in zip(cells, numbers, strict=True)]
        size = " x ".join(map(str, _size(row)))
        lines.append([str(place), row.label, *cells, percent(row.score), size])
    return header, lines


def _size(row: Row) -> tuple[int, int]:
    cells = row.cells.values()
    return min((len(c.seeds) for c in cells), default=0), min((c.repeats for c in cells), default=0)


def text_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns aligned for a terminal; also valid Markdown."""
    widths = [max(len(str(line[i])) for line in (header, *lines)) for i in range(len(header))]
    pad = [str.ljust if i < 2 else str.rjust for i in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(p(str(c), w) for p, c, w in zip(pad, cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i < 2 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([row(header), rule, *map(row, lines)])


def summary(sweep: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> str:
    """What a sweep prints when it ends: the table, then the verdicts."""
    metric = sweep.get("metric", "mean")
    rows = rank(trials, metric)
    if not rows:
        return "No trial was judged downstream."
    text = text_table(*table(rows, metric, paper=paper_applies(sweep, trials)))
    notes = "mIoU in %, mean ± standard deviation over seeds (each seed the mean of its repeats)"
    return "\n".join([text, notes, "", *headline(rows, metric)])
