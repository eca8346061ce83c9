"""What the parameters do to the score: parallel coordinates, importance by Optuna, response curves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from cromss.pages.run import ARMS, Run

AXES = 8  # that a plane of parallel coordinates bears; the most important come first
PER_PARAMETER = 4  # configurations that a parameter needs before its importance is worth a number
LEAST = 8  # configurations in all
FORESTS = 5  # random forests whose spread shows how far a share can be trusted
ABSENT = "none"  # the value of a parameter that a configuration does not have


class Point(NamedTuple):
    """One configuration: its arm and parameters, and its score in per cent, the mean over seeds."""

    name: str
    parameters: dict[str, Any]
    score: float


def points(run: Run) -> list[Point]:
    """Every configuration that has a score. The ceiling is none of the choices that a space offers."""
    from cromss.trials.rows import parameters_of

    found = []
    for row in run.rows:
        if row.score and not row.is_ceiling:
            found.append(Point(row.name, {"arm": row.arm} | parameters_of(row.trials[0]), 100 * row.score.mean))
    return found


def varied(found: Sequence[Point]) -> dict[str, list[Any]]:
    """parameter -> its value in every configuration, where it is not the same in all: numbers where all of them are, else
    names."""
    keys = list(dict.fromkeys(key for point in found for key in point.parameters))
    columns = {key: [point.parameters.get(key) for point in found] for key in keys}
    columns = {key: values for key, values in columns.items() if len(set(map(str, values))) > 1}
    return {key: [float(v) for v in values] if all(map(_is_number, values)) else [_name(v) for v in values]
            for key, values in columns.items()}  # fmt: skip


def space(run: Run) -> dict[str, Any]:
    """Parallel coordinates and importance (a figure, or a note why there is none); empty where a single parameter varies."""
    found = points(run)
    columns = varied(found)
    if len(found) < 3 or len(columns) < 2:
        return {}
    shares = _importance(columns, found)
    return {"parallel": _parallel(run, columns, found, shares or {})} | _drawn(run, columns, found, shares)


def _parallel(
    run: Run, columns: dict[str, list[Any]], found: Sequence[Point], shares: dict[str, Any]
) -> dict[str, Any]:
    weight = {name: sum(values) for name, values in shares.items()}
    shown = sorted(columns, key=lambda key: -weight.get(key, 0))[:AXES]
    axes = [run.plot.Axis(short(key, columns), columns[key], is_log(columns[key])) for key in columns if key in shown]
    title = f"mIoU (%), {run.score_title}"
    caption = "A line is a configuration, its colour the score (mean over seeds); names stand in the order of their mean score."
    if len(shown) < len(columns):
        caption += f" The {len(shown)} most important of {len(columns)} parameters."
    return run.figure(run.plot.parallel(axes, [point.score for point in found], title), caption, wide=True)


def _drawn(run: Run, columns: dict[str, list[Any]], found: Sequence[Point], shares: Any) -> dict[str, Any]:
    if shares is None:
        needed = max(LEAST, PER_PARAMETER * len(columns))
        return {"note": f"Too few trials to tell which parameter matters: {len(found)} configurations are judged, "
                f"{len(columns)} parameters vary, and {needed} configurations would be needed."}  # fmt: skip
    named = {short(key, columns): values for key, values in shares.items()}
    caption = (
        f"Importance of the parameters over {len(found)} configurations, by Optuna's fANOVA: the share of the variance of "
        f"the score (mean over seeds) that a parameter explains alone. Bar: mean of {FORESTS} random forests; line: from "
        f"the lowest to the highest. It says how much, not in which direction, and seed noise counts as variance, too."
    )
    return {"importance": run.figure(run.plot.importance(named), caption)}


def _importance(columns: dict[str, list[Any]], found: Sequence[Point]) -> dict[str, list[float]] | None:
    """parameter -> its share of the variance in each of the forests, or None for too few configurations."""
    if len(found) < max(LEAST, PER_PARAMETER * len(columns)):
        return None
    import optuna

    scores = [point.score for point in found]
    if max(scores) - min(scores) < 1e-9:
        return {key: [0.0] for key in columns}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    distributions = {key: _distribution(optuna, values) for key, values in columns.items()}
    for place, score in enumerate(scores):
        values = {key: column[place] for key, column in columns.items()}
        study.add_trial(optuna.create_trial(params=values, distributions=distributions, value=score))
    shares: dict[str, list[float]] = {key: [] for key in columns}
    for seed in range(FORESTS):
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
        for key, share in optuna.importance.get_param_importances(study, evaluator=evaluator).items():
            shares[key].append(share)
    return shares


def _distribution(optuna: Any, values: Sequence[Any]) -> Any:
    if isinstance(values[0], str):
        return optuna.distributions.CategoricalDistribution(sorted(set(values)))
    return optuna.distributions.FloatDistribution(min(values), max(values), log=is_log(values))


def response(run: Run) -> list[dict[str, str]]:
    """A figure for every numeric parameter with three values or more: each arm's scores, and its AUROC where measured, at
    each value, with intervals."""
    from cromss.trials.response import responding, response
    from cromss.trials.rows import parameters_of

    keys = responding(run.trials)
    figures = []
    for key in keys:
        known = [parameters_of(trial).get(key) for trial in run.trials]
        values = [float(value) for value in known if _is_number(value)]
        charts, labels = {}, {}
        shown = [column for column in run.columns if column[1] == "frozen"] or run.columns
        for column in shown:
            for quantity, label in (("miou", "mIoU (%)"), ("auroc", "AUROC")):
                arms = response(run.trials, key, quantity, column)
                scale = 100 if quantity == "miou" else 1
                drawn = {arm: _curve(run, points, scale) for arm, points in list(arms.items())[:ARMS] if points}
                if any(len(curve.x) > 1 for curve in drawn.values()):
                    name = f"{run.ranking.column_title(column)}: {label}" if quantity == "miou" else (
                        f"{column[0].upper()}: {label} of the label weights")  # fmt: skip
                    charts[name], labels[name] = drawn, label
        if charts:
            palette = run.plot.colours(list(dict.fromkeys(arm for arms in charts.values() for arm in arms)))
            caption = f"Response to {key}: mean over seeds with its 95 % interval, an arm beside the other."
            figure = run.plot.responses(charts, palette, short(key, keys), labels, is_log(values))
            figures.append(run.figure(figure, caption))
    return figures


def _curve(run: Run, points: Sequence[Any], scale: float) -> Any:
    ordered = sorted(points, key=lambda point: point.x)

    def of(name: str) -> list[float]:
        values = [getattr(point, name) for point in ordered]
        return [float("nan") if value is None else scale * value for value in values]

    return run.plot.Curve([float(point.x) for point in ordered], of("mean"), of("low"), of("high"))


def short(key: str, keys: Any) -> str:
    """The last two words of a dotted key, which tell it from the others where one does not."""
    parts = key.split(".")
    last = sum(other.split(".")[-1] == parts[-1] for other in keys) == 1 and parts[-1] not in ("kind", "end", "rate")
    return parts[-1] if last else ".".join(parts[-2:])


def is_log(values: Sequence[Any]) -> bool:
    """Whether numbers span two decades, as learning rates do."""
    return not isinstance(values[0], str) and min(values) > 0 and max(values) / min(values) >= 50


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name(value: Any) -> str:
    if value is None:
        return ABSENT
    return f"{value:.4g}" if isinstance(value, float) else str(value)
