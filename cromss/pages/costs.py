"""What each trial cost: seconds of pretraining and judging, device-hours, share of the sweep."""

from collections.abc import Mapping
from typing import Any

from cromss.pages.run import ROWS, Run
from cromss.tracking import costs as costs_of


def seconds(trial: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """(pretraining, judging) of a trial; None where it did not come so far."""
    clock = trial.get("clock") or {}
    return clock.get("pretraining"), clock.get("judging")


def device_hours(trial: Mapping[str, Any]) -> float | None:
    """What a trial's finished parts held: its devices times their seconds. None where it did not say how many."""
    return costs_of(trial).get("cost/device_hours")


def costs(run: Run) -> dict[str, Any] | None:
    """A line per configuration, and one per trial; the sweep's whole from its ledger, lost attempts included."""
    timed = list(filter(_timed, run.trials))
    if not timed:
        return None
    units = {trial["clock"]["unit"] for trial in timed if "unit" in trial["clock"]}
    known = sum(device_hours(trial) or 0 for trial in timed)
    whole = max(_spent(run), known)
    lines = []
    for name in run.names:
        if own := list(filter(_timed, run.groups[name])):
            lines.append({"name": name, "trials": len(own), **_line(own, whole)})
    trials = [
        {"key": trial["key"], "arm": trial["arm"], "seed": trial["seed"], **_line([trial], whole)} for trial in timed
    ]
    rest = whole - known
    return {
        "lines": sorted(lines, key=lambda one: -(one["hours"] or 0)),
        "trials": sorted(trials, key=lambda one: -(one["hours"] or 0)),
        "shown": ROWS,
        "unit": units.pop() if len(units) == 1 else "device-hours",
        "whole": f"{whole:.3g}" if whole else "",
        "rest": f"{rest:.2g}" if whole and rest > 0.005 * whole else "",
    }


def _timed(trial: Mapping[str, Any]) -> bool:
    return any(part is not None for part in seconds(trial))


def _line(trials: list[dict[str, Any]], whole: float) -> dict[str, Any]:
    pretraining, judging = zip(*map(seconds, trials), strict=True)
    hours = [hour for hour in map(device_hours, trials) if hour is not None]
    total = sum(hours) if hours else None
    return {
        "pretraining": duration(pretraining), "judging": duration(judging), "hours": total,
        "told": f"{total:.3g}" if total is not None else "-",
        "share": f"{100 * total / whole:.1f} %" if total is not None and whole else "-",
    }  # fmt: skip


def duration(values: Any) -> str:
    """`41.0 ± 3.1`, seconds over trials."""
    import numpy as np

    known = [value for value in values if value is not None]
    if not known:
        return "-"
    digits = 1 if np.mean(known) < 100 else 0
    spread = f" ± {np.std(known, ddof=1):,.{digits}f}" if len(known) > 1 else ""
    return f"{np.mean(known):,.{digits}f}{spread}"


def _spent(run: Run) -> float:
    """Hours in the sweep's ledger; 0 without one."""
    from cromss.trials.spending import spent

    units = {trial["clock"]["unit"] for trial in run.trials if "unit" in (trial.get("clock") or {})}
    return sum(spent(run.folder / "spending.jsonl", unit) for unit in units)
