"""Who is how good: the answer, the ranking, the paired differences, class by class."""

from collections.abc import Iterator
from typing import Any

from cromss.pages.run import ROWS, Run, mean


def answer(run: Run) -> str:
    """One sentence, with its interval, that answers the space's question; nothing for a run that asked none."""
    if not run.sweep or not run.rows:
        return ""
    from cromss.trials.answers import answer

    return answer(run.sweep, run.trials)


def headline(run: Run) -> list[str]:
    """What stands below the answer: the same per level of what the space varied beside, then who leads over whom."""
    if not run.rows:
        return []
    from cromss.trials.answers import details

    return [*(details(run.sweep, run.trials) if run.sweep else []), *run.ranking.headline(run.rows, run.metric)]


def table(run: Run) -> dict[str, Any] | None:
    if not run.rows:
        return None
    ranking = run.ranking
    lines = []
    for row in run.rows:
        cells = [
            {"text": ranking.percent(row.cells.get(column)),
             "paper": ranking.paper_text(row.arm, column) if run.paper else ""}
            for column in run.columns
        ]  # fmt: skip
        size = ranking.counts(next(iter(row.cells.values()))) if row.cells else ""
        lines.append({"label": row.label, "colour": run.palette[row.name], "cells": cells, "size": size,
                      "score": ranking.percent(row.score), "leads": row is run.best})  # fmt: skip
    return {"header": [ranking.column_title(c) for c in run.columns], "lines": lines, "shown": ROWS, "paper": run.paper,
            "metric": run.score_title, "heads": _heads(run)}  # fmt: skip


def _heads(run: Run) -> str:
    judged = [one for trial in run.trials for one in trial["downstream"] if one.get("head")]
    return ", ".join(sorted({f"{one['head']}, head_depth {one.get('head_depth', '-')}" for one in judged}))


def chart(run: Run) -> dict[str, str] | None:
    scores: dict[str, dict[str, Any]] = {}
    for column in run.columns:
        arms = scores.setdefault(run.ranking.column_title(column), {})
        for row in run.rows[:ROWS]:
            if cell := row.cells.get(column):
                paper = run.ranking.PAPER.get(row.arm, {}).get(column) if run.paper else None
                seeds = [100 * value for value in cell.seeds.values()]
                std = 100 * cell.std if cell.std is not None else None
                arms[row.name] = run.plot.Dot(seeds, 100 * cell.mean, std, paper[0] if paper else None)
    if not any(scores.values()):
        return None
    caption = "Dot and bar: mean ± standard deviation over seeds. Ticks: single seeds."
    caption += " Diamonds: the paper." * run.paper
    caption += f" The first {ROWS} of {len(run.rows)} configurations." * (len(run.rows) > ROWS)
    return run.figure(run.plot.ranking(scores, run.palette), caption, wide=True)


def differences(run: Run) -> dict[str, Any] | None:
    shown = [column for column in run.columns if column[1] == "frozen"] or run.columns
    lines = []
    for a, b in run.ranking.pairs(run.rows)[:12]:
        cells = [_difference(run, a.cells.get(column), b.cells.get(column)) for column in shown]
        lines.append({"a": a.name, "b": b.label, "cells": [*cells, _difference(run, a.score, b.score)]})
    header = [*map(run.ranking.column_title, shown), run.score_title]
    return {"header": header, "lines": lines} if lines else None


def _difference(run: Run, a: Any, b: Any) -> dict[str, Any]:
    found = run.ranking.difference(a, b) if a and b else None
    if found is None:
        return {"text": "-", "interval": "", "outside": False}
    interval = found.interval
    return {
        "text": run.ranking.points(found.mean, sign=True),
        "interval": "[{}, {}]".format(*(run.ranking.points(x, sign=True) for x in interval)) if interval else
                    f"{len(found.values)} seed{'s' * (len(found.values) != 1)}: no interval",
        "outside": bool(interval) and not interval[0] <= 0 <= interval[1],
    }  # fmt: skip


def class_iou(run: Run) -> Iterator[dict[str, str]]:
    for modality, mode in run.columns:
        arms, classes = {}, []
        for row in run.chosen():
            judged = _judged(row, modality, mode)
            if judged and (not classes or judged[0]["classes"] == classes):
                classes = judged[0]["classes"]
                arms[row.name] = [mean(one["iou"][k] for one in judged) for k in range(len(classes))]
        if arms:
            title = run.ranking.column_title((modality, mode))
            figure = run.plot.class_iou(arms, classes, run.palette, title)
            yield run.figure(figure, "Mean over all seeds and repeats.")


def confusions(run: Run) -> Iterator[dict[str, str]]:
    import numpy as np

    for modality, mode in run.columns:
        judged = _judged(run.best, modality, mode) if run.best else []
        matrices = [np.asarray(one["confusion"], float) for one in judged if one.get("confusion")]
        if matrices and all(matrix.shape == matrices[0].shape for matrix in matrices):
            title = f"{run.best.name}, {run.ranking.column_title((modality, mode))}"
            figure = run.plot.confusion(sum(matrices), judged[0]["classes"], title)
            yield run.figure(figure, "Per cent of each reference class, all test pixels of all runs.")


def _judged(row: Any, modality: str, mode: str) -> list[dict[str, Any]]:
    found = [one for trial in row.trials for one in trial["downstream"]
             if (one["modality"], one["mode"]) == (modality, mode)]  # fmt: skip
    return [one for one in found if one.get("classes") and len(one.get("iou") or ()) == len(one["classes"])]
