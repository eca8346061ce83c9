"""The door to what the trials of a sweep say: ranked rows, comparisons, and the words for them.

rows.py ranks, comparisons.py sets rows against each other, statistics.py tests, words.py and paper.py print; tables.py
writes the tables and answers.py the answer to a space's question.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cromss.trials.aggregates import aggregates
from cromss.trials.comparisons import Difference, baseline, difference, pairs, verdict
from cromss.trials.paper import PAPER, paper_applies, paper_text
from cromss.trials.rows import Cell, Row, columns, configurations, leader, modalities_of, rank
from cromss.trials.words import column_title, counts, metric_title, percent, points, text_table

__all__ = [
    "PAPER", "Cell", "Difference", "Row", "aggregates", "baseline", "column_title", "columns", "configurations", "counts",
    "difference", "headline", "leader", "metric_title", "modalities_of", "pairs", "paper_applies", "paper_text", "percent",
    "points", "rank", "summary", "table", "text_table", "verdict",
]  # fmt: skip
SHOWN = 40  # rows in a terminal


def headline(rows: Sequence[Row], metric: str = "mean") -> list[str]:
    """Computed sentences: who leads, by how much over the next, and every CromSS arm against its own baseline."""
    best = leader(rows)
    if best is None:
        return ["No configuration has a complete score yet."]
    title = metric_title(metric, modalities_of(rows, metric))
    text = [f"{best.name} leads with {percent(best.score)} % {title} mIoU ({counts(best.score)})."]
    rival = next((row for row in rows if row.score and not row.is_ceiling and row is not best), None)
    names = [row.name for row in rows]
    selecting = [(a, b) for a, b in pairs(rows) if a.arm.startswith("CromSS-") and baseline(a.name, names) == b.name]
    selecting = [(a, b) for a, b in selecting if a.score and b.score]
    if rival and {best.name, rival.name} not in [{a.name, b.name} for a, b in selecting]:
        text.append(f"{best.name} against {rival.name}, the next: {verdict(best.score, rival.score)}.")
    return text + [f"{a.name} against {b.name}: {verdict(a.score, b.score)}." for a, b in selecting]


def table(rows: Sequence[Row], metric: str = "mean", *, paper: bool = False) -> tuple[list[str], list[list[str]]]:
    """The ranking as (header, lines) of text."""
    shown, title = columns(rows), metric_title(metric, modalities_of(rows, metric))
    header = ["", "configuration", *map(column_title, shown), title, "seeds x repeats"]
    lines = []
    for place, row in enumerate(rows, 1):
        cells = [percent(row.cells.get(column)) for column in shown]
        if paper:
            numbers = [paper_text(row.arm, column) for column in shown]
            cells = [f"{own} (paper {n})" if n else own for own, n in zip(cells, numbers, strict=True)]
        lines.append([str(place), row.label, *cells, percent(row.score), " x ".join(map(str, row.size))])
    return header, lines


def summary(sweep: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> str:
    """What a sweep prints when it ends: the answer, the ranking, the Markdown table of the metric, then the verdicts."""
    from cromss.trials.answers import answer
    from cromss.trials.tables import markdown, tables

    metric = sweep.get("metric", "mean")
    rows = rank(trials, metric)
    if not rows:
        return "No trial was judged downstream."
    if len(rows) > SHOWN:
        text = text_table(*table(rows[:SHOWN], metric, paper=paper_applies(sweep, trials)))
        text += f"\n{len(rows) - SHOWN} more rows are in table.md"
    else:
        text = markdown(tables(sweep, trials, quantities=("miou",)))
    return "\n".join([answer(sweep, trials), "", text, "", *headline(rows, metric)])
