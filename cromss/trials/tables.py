"""The table of a sweep: scores over seeds, what differs from what, and bold only where the seeds bear it out.

    OUT/table.md   table.tex (booktabs)   table.csv (one line per row, column and quantity)   table.html (a fragment)

Nothing in it depends on when or where it was computed: a sweep that was killed and went on ends in the same bytes.
"""

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cromss.config import PRESETS, RunConfig
from cromss.settings import leaves, overlay
from cromss.trials import statistics
from cromss.trials.comparisons import Difference, baseline, difference, pairs
from cromss.trials.paper import paper_applies, paper_text
from cromss.trials.rows import QUANTITIES, Cell, Column, Row, columns, rank

BOLD, AMONG = "bold", "among"  # the best alone; the best, or what the seeds cannot tell from it
FIRST = (
    "random",
    "MoCo",
    "DINO",
    "MIM",
    "single-modal",
    "midF",
    "lateF",
)  # then the other methods, CromSS, the ceiling


@dataclass(frozen=True)
class Score:
    """One row's cell of one column; `standing` is BOLD, AMONG or nothing."""

    cell: Cell | None
    standing: str
    paper: str


@dataclass(frozen=True)
class Comparison:
    """Row `a` against row `b` in one column; `holm` is p of the paired t-test, corrected over the table it stands in."""

    a: str
    b: str
    column: Column
    difference: Difference | None
    holm: float | None

    @property
    def sign_flip(self) -> float | None:
        return statistics.sign_flip(list(self.difference.values.values())) if self.difference else None


@dataclass(frozen=True)
class Table:
    """One quantity: rows x columns of scores, and pairs x columns of differences."""

    quantity: str
    columns: list[Column]
    rows: list[Row]
    scores: dict[tuple[str, Column], Score]
    comparisons: list[Comparison]

    @property
    def title(self) -> str:
        return QUANTITIES[self.quantity]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return list(dict.fromkeys((one.a, one.b) for one in self.comparisons))

    def comparison(self, a: str, b: str, column: Column) -> Comparison:
        return self._by_names[a, b, column]

    @functools.cached_property
    def _by_names(self) -> dict[tuple[str, str, Column], Comparison]:
        return {(one.a, one.b, one.column): one for one in self.comparisons}


@dataclass(frozen=True)
class Tables:
    """The tables of a sweep and what is said below them."""

    name: str
    tables: list[Table]
    notes: list[str]


def tables(
    sweep: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], quantities: Iterable[str] = QUANTITIES
) -> Tables:
    """A table for every quantity that was measured."""
    paper = paper_applies(sweep, trials)
    found = [one for quantity in quantities if (one := _table(trials, quantity, paper and quantity == "miou")).columns]
    return Tables(sweep.get("space") or "run", found, _notes(found, trials, paper) if found else [])


def write(out: str | Path) -> list[Path]:
    """(Re)write the four files of a run folder; nothing where nothing was judged yet."""
    from cromss.journal import read_sweep, read_trials
    from cromss.trials.table_formats import csv, html, latex

    out = Path(out)
    trials = read_trials(out)
    if not any(trial["downstream"] for trial in trials):
        return []
    made = tables(read_sweep(out), trials)
    texts = {"md": markdown(made), "tex": latex(made), "csv": csv(made), "html": html(made)}
    paths = []
    for ending, text in texts.items():
        path = out / f"table.{ending}"
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        paths.append(aside.replace(path))
    return paths


def markdown(made: Tables) -> str:
    """Aligned for a terminal, too."""
    from cromss.trials.table_formats import markdown as text

    return text(made)


# --- the numbers --------------------------------------------------------------------------------------------------------


def _table(trials: Sequence[Mapping[str, Any]], quantity: str, paper: bool) -> Table:
    rows = sorted(rank(trials, quantity=quantity), key=_place)
    shown = columns(rows)
    standing = _standings(rows, shown)
    scores = {
        (row.name, column): Score(
            row.cells.get(column), standing.get((row.name, column), ""), paper_text(row.arm, column) if paper else ""
        )
        for row in rows
        for column in shown
    }
    return Table(quantity, shown, rows, scores, _comparisons(rows, shown))


def _place(row: Row) -> tuple[Any, ...]:
    """As in the paper: untrained, self-supervised, one modality, fusion, other methods, CromSS, the ceiling."""
    first = FIRST.index(row.arm) if row.arm in FIRST else len(FIRST)
    return row.is_ceiling, row.arm.startswith("CromSS-"), first, row.arm.rpartition("-")[0], _fusion(row), row.name


def _fusion(row: Row) -> int:
    tail = row.arm.rpartition("-")[2]
    return FIRST.index(tail) if tail in FIRST else len(FIRST)


def _standings(rows: Sequence[Row], shown: Sequence[Column]) -> dict[tuple[str, Column], str]:
    """Multiple comparison with the best: each column's best against every other row of it, all these tests corrected
    together. What is not significantly worse than the best shares its mark; the best is bold if it is left alone. A column
    of one seed has no marks: there is nothing that it could tell."""
    best: dict[Column, Row] = {}
    tests: dict[tuple[str, Column], float | None] = {}
    several: set[Column] = set()
    for column in shown:
        able = [row for row in rows if column in row.cells and not row.is_ceiling]
        if len(able) > 1:
            best[column] = top = max(able, key=lambda row: row.cells[column].mean)
            for row in able:
                if row is not top:
                    found = difference(top.cells[column], row.cells[column])
                    tests[row.name, column] = found.p if found else None
                    several |= {column} if found and len(found.values) > 1 else set()
    corrected = dict(zip(tests, statistics.holm(list(tests.values())), strict=True))
    among = {key for key, p in corrected.items() if key[1] in several and (p is None or p >= statistics.ALPHA)}
    standing = dict.fromkeys(among, AMONG)
    for column, top in best.items():
        if column not in several:
            continue
        standing[top.name, column] = AMONG if any(at == column for _, at in among) else BOLD
    return standing


def _comparisons(rows: Sequence[Row], shown: Sequence[Column]) -> list[Comparison]:
    """Every method against its own baseline and every row against random; where there is neither, the leader against
    the rest. Corrected together: every test of one table."""
    by_name = {row.name: row for row in rows}
    random = [row for row in rows if row.arm == "random"]
    asked = [(row, by_name[plain]) for row in rows if (plain := baseline(row.name, by_name))]
    asked += [(row, chance) for chance in random for row in rows if row.arm != "random"]
    asked = asked or pairs(rows)
    found = [
        (
            a,
            b,
            column,
            difference(a.cells[column], b.cells[column]) if {column} <= a.cells.keys() & b.cells.keys() else None,
        )
        for a, b in asked
        for column in shown
    ]
    holm = statistics.holm([delta.p if delta else None for *_, delta in found])
    return [Comparison(a.name, b.name, column, delta, p) for (a, b, column, delta), p in zip(found, holm, strict=True)]


# --- what is said below -------------------------------------------------------------------------------------------------


def _notes(found: Sequence[Table], trials: Sequence[Mapping[str, Any]], paper: bool) -> list[str]:
    rows = found[0].rows
    seeds, repeats = (_range(row.size[i] for row in rows) for i in (0, 1))
    notes = [
        f"In %: mean ± standard deviation over {seeds} seeds (independent pretrainings), each seed the mean of {repeats} "
        f"downstream runs. {_judged_by(trials)} {_preset(trials)}"
    ]
    notes += ["(paper ...): Table 1 of arXiv 2405.01217, of 3 downstream runs of one pretraining each."] * paper
    notes.append(
        "Bold: the best of its column and significantly better than every other row of it (paired t-test over seeds, p < .05 "
        "after Holm's correction over all such tests of the table). †: the best, and every row that these seeds cannot tell "
        "from it. A row marked (ceiling) knows the clean labels and takes no part."
    )
    pairs = [len(one.difference.values) for table in found for one in table.comparisons if one.difference]
    if pairs:
        tested = _range(sum(one.holm is not None for one in table.comparisons) for table in found)
        notes.append(
            f"Differences in points, seed by seed ({_range(pairs)} pairs), with the 95 % bootstrap interval (BCa; none below "
            f"3 pairs{_doubt(min(pairs))}) and p of the paired t-test, Holm-corrected over the {tested} tests of the table. "
            f"The exact sign-flip test cannot give a p below {statistics.smallest_sign_flip(min(pairs)):.3g} with "
            f"{min(pairs)} pair{'s' * (min(pairs) != 1)}; table.csv holds it, with the t interval."
        )
    return notes + _zero_shot(trials)


def _doubt(pairs: int) -> str:
    known = {3: "73", 4: "80", 5: "84"}
    return f"; of {pairs} it covers the truth about {known[pairs]} times in 100, not 95" if pairs in known else ""


def _range(numbers: Iterable[int]) -> str:
    known = sorted(set(numbers))
    return f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _judged_by(trials: Sequence[Mapping[str, Any]]) -> str:
    heads = {(one.get("head"), one.get("head_depth"), one.get("protocol"), one.get("scheme"))
             for trial in trials for one in trial["downstream"] if one["mode"] != "zero_shot"}  # fmt: skip
    said = []
    for head, depth, protocol, scheme in sorted(heads, key=str):
        parts = [f"head {head or 'unknown'}", f"head_depth {depth}" if depth is not None else "",
                 f"protocol {protocol}" if protocol else "", f"classes {scheme}" if scheme else ""]  # fmt: skip
        said.append(", ".join(part for part in parts if part))
    return f"Judged by: {'; '.join(said)}." if said else ""


_OWN = ("objective.method.", "model.fusion.", "transfer.modes", "transfer.repeats", "transfer.modalities")


def _preset(trials: Sequence[Mapping[str, Any]]) -> str:
    """The nearest preset, and in what the trials all differ from it: what was set by hand."""
    known = [leaves(trial["config"]) for trial in trials if trial.get("config")]
    if not known:
        return ""
    common = {
        key: value
        for key, value in known[0].items()
        if key.startswith(("objective.", "optim.", "model.", "transfer.")) and not key.startswith(_OWN)
        and all(one.get(key) == value for one in known)
    }  # fmt: skip
    changed = {}
    for name, layer in PRESETS.items():
        own = leaves(overlay(RunConfig().model_dump(mode="json"), layer))
        changed[name] = {key: value for key, value in common.items() if key in own and own[key] != value}
    name = min(changed, key=lambda name: len(changed[name]))
    hand = [f"{key}={value}" for key, value in sorted(changed[name].items())]
    more = f" and {len(hand) - 6} more" if len(hand) > 6 else ""
    return f"Preset {name}{' with ' + ', '.join(hand[:6]) + more if hand else ''}."


def _zero_shot(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """How zero-shot was scored and which arms have none; nothing where nobody asked for it."""
    judged = [one for trial in trials for one in trial["downstream"] if one["mode"] == "zero_shot"]
    without = {
        trial["arm"]: _NO_CLASSES.get(trial["config"].get("pretraining", {}).get("kind"), "no classes of its own")
        for trial in trials
        if "zero_shot" in trial.get("config", {}).get("transfer", {}).get("modes", ())
        and trial["downstream"] and not any(one["mode"] == "zero_shot" for one in trial["downstream"])
    }  # fmt: skip
    notes = []
    if judged:
        maps = sorted({f"{one['own_scheme']} to {one['scheme']}" for one in judged})
        missing = sorted({name for one in judged for name in one["missing"]})
        named = f"; no class of its own means {', '.join(missing)}, which it therefore scores 0 in" if missing else ""
        notes.append(
            f"Zero-shot: the pretrained network's own classes, no training downstream ({'; '.join(maps)}){named}."
        )
    if without:
        notes.append(f"No zero-shot: {', '.join(f'{arm} ({why})' for arm, why in sorted(without.items()))}.")
    return notes


_NO_CLASSES = {"random": "random weights", "checkpoint": "an encoder alone"}
