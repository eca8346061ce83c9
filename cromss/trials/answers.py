"""The answer to a space's question: one sentence with its interval, "no difference" where there is none.

A space says how its results answer it: `ANSWER = Compare("CromSS-midF", "midF")`; without, it asks which row is `Best`.
Intervals are 95 % t intervals over seeds, the unit of everything here.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pydantic

from cromss.settings import Settings
from cromss.trials import statistics
from cromss.trials.comparisons import difference, difference_of
from cromss.trials.observations import ARM, Observation, by_seed, factors_of, is_number, ordered, pairs_of, scores_of
from cromss.trials.rows import QUANTITIES, Row, modalities_of, rank, score_mode
from cromss.trials.words import MODES, between, chance, metric_title, percent, points

Trials = Sequence[Mapping[str, Any]]


class _Asked(Settings):
    """What all have: fields may be given in order, `Compare("CromSS-midF", "midF")`."""

    def __init__(self, *given: Any, **named: Any) -> None:
        names = [name for name in type(self).model_fields if name != "kind"]
        super().__init__(**dict(zip(names, given, strict=False)), **named)


class Best(_Asked):
    """Which configuration has the highest score, and can the seeds tell it from the others?"""

    kind: Literal["best"] = "best"
    margin: float = pydantic.Field(statistics.MARGIN, gt=0)

    def sentence(self, trials: Trials, metric: str) -> str:
        rows = [row for row in rank(trials, metric) if row.score and not row.is_ceiling]
        if not rows:
            return "Not answered yet: no configuration has a complete score."
        top, rest = rows[0], rows[1:]
        what = f"{percent(top.score)} % {_title(trials, metric)}"
        if not rest:
            return f"One configuration was judged, {top.name}: {what}; there is nothing to compare it with."
        if len(top.score.seeds) < 2:
            return f"Too few seeds to tell: {top.name} leads with {what}, but one seed says nothing about noise."
        found = [difference(top.score, row.score) for row in rest]
        corrected = statistics.holm([one.p if one else None for one in found])
        level = [row for row, p in zip(rest, corrected, strict=True) if p is None or p >= statistics.ALPHA]
        next_one = f"{points(found[0].mean, sign=True)} points {_spread(found[0])}" if found[0] else "no common seed"
        if not level:
            return f"{top.name} is best of {len(rows)}: {what}; over the next, {rest[0].name}: {next_one}."
        if all(statistics.finding(list(one.values.values()), self.margin) == "no difference"
               for row, one in zip(rest, found, strict=True) if row in level and one):  # fmt: skip
            near = f"no difference as large as {points(self.margin)} point{'s' * (self.margin != 0.01)}"
            return f"Between {_listed([top, *level])}: {near}; {top.name} leads with {what}, over the next: {next_one}."
        return (
            f"Too few seeds to tell {_listed([top, *level])} apart: {top.name} leads with {what}, over the next, "
            f"{rest[0].name}: {next_one}."
        )

    def details(self, trials: Trials, metric: str) -> list[str]:
        return []


class Compare(_Asked):
    """Does `a` score higher than `b`: two arms, or two values of `parameter`? Paired by everything else and the seed."""

    kind: Literal["compare"] = "compare"
    a: Any
    b: Any
    parameter: str = ARM
    margin: float = pydantic.Field(statistics.MARGIN, gt=0)
    quantity: Literal["miou", "oa", "aa"] = "miou"

    def sentence(self, trials: Trials, metric: str) -> str:
        pairs = self._pairs(trials, metric)
        if not pairs:
            return f"Not answered yet: no seed has both {self._names}."
        cells = len({str(sorted(pair.parameters.items(), key=str)) for pair in pairs})
        over = f", over {cells} settings of the rest" if cells > 1 else ""
        title = _title(trials, metric, self.quantity)
        return f"{self._names}, {title}: {_said(by_seed(pairs), self.margin)}{over}."

    def details(self, trials: Trials, metric: str) -> list[str]:
        """A line per level of every other factor, p corrected over all of them; then the modalities apart."""
        pairs = self._pairs(trials, metric)
        levels = [
            (factor, level, by_seed(pair for pair in pairs if pair.parameters.get(factor) == level))
            for factor, found in factors_of(pairs).items()
            for level in found
        ]
        corrected = statistics.holm([statistics.paired_t(list(values.values())) for *_, values in levels])
        lines = [
            f"{factor}={level}: {_said(values, self.margin)}"
            + (f", p {chance(p)} corrected over {len(levels)} levels" if p is not None else "")
            for (factor, level, values), p in zip(levels, corrected, strict=True)
        ]
        return lines + self._apart(trials, metric)

    def _apart(self, trials: Trials, metric: str) -> list[str]:
        """Of a mean over modalities: each alone, told and not tested."""
        modalities = modalities_of(rank(trials, metric, self.quantity), metric)
        apart = {one: by_seed(self._pairs(trials, one)) for one in modalities} if len(modalities) > 1 else {}
        return [f"{one.upper()} alone, not tested: {_size(values)}" for one, values in apart.items() if values]

    def _pairs(self, trials: Trials, metric: str) -> list[Any]:
        return pairs_of(scores_of(trials, metric, self.quantity), self.parameter, self.a, self.b)

    @property
    def _names(self) -> str:
        if self.parameter == ARM:
            return f"{self.a} against {self.b}"
        return f"{self.parameter}={self.a} against {self.b}"


class Trend(_Asked):
    """Does the score rise or fall with `parameter`? A straight line through every seed's points, its rise from the lowest
    to the highest value; of `arm` minus `against` where they are named, else of every arm."""

    kind: Literal["trend"] = "trend"
    parameter: str
    arm: str | None = None
    against: str | None = None
    margin: float = pydantic.Field(statistics.MARGIN, gt=0)
    quantity: Literal["miou", "oa", "aa"] = "miou"

    def sentence(self, trials: Trials, metric: str) -> str:
        found = [one for one in scores_of(trials, metric, self.quantity) if is_number(one.level(self.parameter))]
        title, said = _title(trials, metric, self.quantity), []
        for name, series in self._series(found).items():
            rises, (low, high) = _rises(series, self.parameter)
            if rises:
                said.append(f"{name}: {_said(rises, self.margin)} from {low:g} to {high:g}")
        if not said:
            return f"Not answered yet: no seed was measured at two values of {self.parameter}."
        return f"Change of {title} with {self.parameter}: {'; '.join(said)}."

    def details(self, trials: Trials, metric: str) -> list[str]:
        """At every value: the difference of the two arms, where they are named."""
        if not (self.arm and self.against):
            return []
        found = scores_of(trials, metric, self.quantity)
        pairs = pairs_of(found, ARM, self.arm, self.against)
        levels = ordered(pair.parameters[self.parameter] for pair in pairs if self.parameter in pair.parameters)
        at = {level: by_seed(p for p in pairs if p.parameters.get(self.parameter) == level) for level in levels}
        return [f"{self.parameter}={level}: {_said(values, self.margin)}" for level, values in at.items()]

    def _series(self, found: list[Observation]) -> dict[str, list[Observation]]:
        if self.arm and self.against:
            pairs = pairs_of(found, ARM, self.arm, self.against)
            return {f"{self.arm} \N{MINUS SIGN} {self.against}":
                    [Observation("", pair.parameters, pair.seed, pair.difference) for pair in pairs]}  # fmt: skip
        arms = [self.arm] if self.arm else sorted({one.arm for one in found})
        return {arm: [one for one in found if one.arm == arm] for arm in arms}


Answer = Annotated[Best | Compare | Trend, pydantic.Field(discriminator="kind")]


def asked(sweep: Mapping[str, Any]) -> Best | Compare | Trend:
    """How the results of this sweep answer its question. Raises ValueError for what no space can have written."""
    if not sweep.get("answer"):
        return Best()
    try:
        return pydantic.TypeAdapter(Answer).validate_python(sweep["answer"])
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"sweep.json: answer: {first['msg']}; valid kinds: best, compare, trend") from None


def answer(sweep: Mapping[str, Any], trials: Trials) -> str:
    """The sentence."""
    return asked(sweep).sentence(trials, sweep.get("metric", "mean"))


def details(sweep: Mapping[str, Any], trials: Trials) -> list[str]:
    """The same per level of every factor that the space varied beside; empty where there is none."""
    return asked(sweep).details(trials, sweep.get("metric", "mean"))


# --- clauses ------------------------------------------------------------------------------------------------------------


def _said(values: Mapping[Any, float], margin: float) -> str:
    """What the differences of some seeds show, with their interval."""
    array = list(values.values())
    found, n, mean = statistics.finding(array, margin), len(array), float(np.mean(array))
    delta = difference_of(dict(values))
    size = _size(values)
    if found in ("higher", "lower"):
        small = statistics.equivalence(array, margin) < statistics.ALPHA
        return f"{found} by {points(abs(mean))} points {_spread(delta)}" + (
            f", though by less than {points(margin)}" * small
        )
    if found == "no difference" and delta.interval is None:
        return f"no difference in any of {n} seeds"
    if found == "no difference":
        p = chance(statistics.equivalence(array, margin))
        return f"no difference as large as {points(margin)} (TOST p {p}): {size}"
    if n > 1 and delta.interval is None:
        return f"the same {points(mean, sign=True)} points in all {n} seeds: no interval"
    return f"too few seeds to tell: {size}"


def _size(values: Mapping[Any, float]) -> str:
    delta = difference_of(dict(values))
    return f"{points(delta.mean, sign=True)} points {_spread(delta)}"


def _spread(delta: Any) -> str:
    n = len(delta.values)
    seeds = f"{n} seed{'s' * (n != 1)}"
    return f"{between(delta.interval)}, {seeds}" if delta.interval else f"of {seeds}, no interval"


def _title(trials: Trials, metric: str, quantity: str = "miou") -> str:
    rows = rank(trials, metric, quantity)
    mode = score_mode(row.cells for row in rows)
    return f"{metric_title(metric, modalities_of(rows, metric))} {MODES.get(mode, mode)} {QUANTITIES[quantity]}"


def _listed(rows: Sequence[Row]) -> str:
    names = [row.name for row in rows]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more if more else f"{', '.join(names[:-1])} and {names[-1]}"


def _rises(series: Sequence[Observation], parameter: str) -> tuple[dict[Any, float], tuple[float, float]]:
    """Of each seed, the mean rise of the straight lines through its points over the whole range of the parameter."""
    values = [one.parameters[parameter] for one in series]
    low, high = min(values, default=0.0), max(values, default=0.0)
    lines: dict[tuple[Any, str], list[Observation]] = {}
    for one in series:
        lines.setdefault((one.seed, one.rest(parameter)), []).append(one)
    rises: dict[Any, list[float]] = {}
    for (seed, _), found in lines.items():
        x = [one.parameters[parameter] for one in found]
        if len(set(x)) > 1:
            slope = np.polyfit(x, [one.value for one in found], 1)[0]
            rises.setdefault(seed, []).append(float(slope) * (high - low))
    return {seed: float(np.mean(rises[seed])) for seed in sorted(rises, key=str)}, (low, high)
