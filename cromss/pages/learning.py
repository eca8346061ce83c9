"""How training went: losses, probes, and the alpha and gamma of every configuration whose schedule differs."""

from typing import Any

from cromss.pages.run import ARMS, Run, line, strongest_first, title

CHARTS = {"val/loss": "Validation loss (unweighted)", "train/loss": "Training loss (weighted: not comparable)"}
SCHEDULES = {"train/alpha": "alpha: share of the labels that count fully",
             "train/gamma": "gamma: share of the teachers' pixels"}  # fmt: skip
LINES = 8  # schedules in one chart
NAMED = 2  # configurations that a legend names before it counts


def curves(run: Run) -> dict[str, str] | None:
    import numpy as np

    journals = {name: [run.entries(trial) for trial in run.groups[name]] for name in run.names[:ARMS]}
    metrics = {
        metric for runs in journals.values() for entries in runs for entry in entries for metric in entry.metrics
    }
    probed = {m.split("/")[1] for m in metrics if m.startswith("probe/") and m.endswith("/miou")}
    known = {"mean": "mean of these"}
    probes = {f"probe/{m}/miou": f"Probe mIoU, {known.get(m) or title(m)}"
              for m in [*strongest_first(probed - {"mean"}), *(["mean"] if "mean" in probed else [])]}  # fmt: skip
    charts: dict[str, dict[str, Any]] = {}
    for metric, name in ({m: t for m, t in CHARTS.items() if m in metrics} | probes).items():
        for arm, runs in journals.items():
            lines = [line(entries, metric) for entries in runs]
            lines = [(x, y) for x, y in lines if np.isfinite(y).all() and len(x) > 1]
            if lines:
                charts.setdefault(name, {})[arm] = lines
    if not charts:
        return None
    drawn = [trial for name in journals for trial in run.groups[name]]
    caption = "Mean over seeds; the band reaches from the lowest to the highest seed."
    if len(run.names) > ARMS:
        caption += f" The first {ARMS} of {len(run.names)} configurations."
    return run.figure(run.plot.curves(charts, run.palette, run.xlabel(drawn)), caption)


def trajectories(run: Run) -> dict[str, str] | None:
    """alpha and gamma over training, a line for every schedule: configurations that followed the same one share it."""
    followed: dict[tuple, dict[str, Any]] = {}  # what was followed -> its lines and who followed it
    for name in run.names:
        for trial in run.groups[name]:
            lines = {text: line(run.entries(trial), metric) for metric, text in SCHEDULES.items()}
            lines = {text: (x, y) for text, (x, y) in lines.items() if len(x) > 1}
            if lines:
                key = tuple((text, *x.round(6), *y.round(6)) for text, (x, y) in lines.items())
                who = followed.setdefault(key, {"lines": lines, "names": []})["names"]
                if name not in who:
                    who.append(name)
                break  # the seeds of a configuration follow one schedule
    if not followed:
        return None
    schedules: dict[str, dict[str, Any]] = {text: {} for text in SCHEDULES.values()}
    for one in list(followed.values())[:LINES]:
        text = _who(run, one["names"], others=[name for name in run.names if name not in one["names"]])
        for schedule, drawn in one["lines"].items():
            schedules[schedule][text] = drawn
    shown = [trial for name in run.names for trial in run.groups[name]]
    figure = run.plot.trajectories({t: lines for t, lines in schedules.items() if lines}, run.xlabel(shown))
    caption = "The schedules that were followed; configurations with the same one share a line."
    if len(followed) > LINES:
        caption += f" {LINES} of {len(followed)}."
    return run.figure(figure, caption)


def _who(run: Run, names: list[str], others: list[str]) -> str:
    """A few configurations by their names; many by what they have in common and the others have not."""
    if len(names) <= NAMED:
        return ", ".join(names)
    from cromss.trials.rows import parameters_of, short

    def parameters(name: str) -> dict[str, Any]:
        trial = run.groups[name][0]
        return {"arm": trial["arm"]} | parameters_of(trial)

    own, theirs = [parameters(name) for name in names], [parameters(name) for name in others]
    common = {key: value for key, value in own[0].items() if all(one.get(key) == value for one in own)}
    telling = {key: value for key, value in common.items() if all(one.get(key) != value for one in theirs)}
    if telling:
        said = ", ".join(f"{short(key, list(own[0]))}={value}" for key, value in telling.items())
        return f"{said} ({len(names)} configurations)"
    return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
