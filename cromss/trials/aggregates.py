"""Each configuration as one run for the tracking server: means over seeds, their spread, their intervals, their cost."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cromss.tracking import Aggregate, costs
from cromss.trials.rows import QUANTITIES, Cell, Row, parameters_of, rank
from cromss.trials.statistics import t_interval


def aggregates(trials: Iterable[Mapping[str, Any]], metric: str = "mean") -> dict[str, Aggregate]:
    """configuration -> what its trials amount to.

    test/<modality>/<mode>/<quantity>   mean over seeds, with `_std`; of mIoU also `_low` and `_high`, the 95 % t interval
    score/miou                          the `metric` that ranks, alike
    cost/{pretraining_s,judging_s,device_hours}   mean over its trials; cost/total_device_hours: their sum
    """
    trials = list(trials)
    found: dict[str, Aggregate] = {}
    rows: dict[str, Row] = {}
    for quantity in QUANTITIES:
        for row in rank(trials, metric, quantity):
            if row.name not in found:
                rows[row.name] = row
                found[row.name] = Aggregate({}, {"arm": row.arm} | parameters_of(row.trials[0]), *row.size)
                if row.score:  # first: MLflow opens a comparison with the first metric
                    found[row.name].metrics.update(_told("score/miou", row.score, interval=True))
            metrics = found[row.name].metrics
            for (modality, mode), cell in row.cells.items():
                metrics |= _told(f"test/{modality}/{mode}/{quantity}", cell, interval=quantity == "miou")
    for name, row in rows.items():
        found[name].metrics.update(_costs(row))
    return found


def _told(name: str, cell: Cell, *, interval: bool) -> dict[str, float]:
    told = {name: cell.mean}
    if cell.std is not None:
        told[f"{name}_std"] = cell.std
    if interval and (bounds := t_interval(list(cell.seeds.values()))):
        told |= {f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
    return told


def _costs(row: Row) -> dict[str, float]:
    every = [costs(trial) for trial in row.trials]
    names = dict.fromkeys(name for one in every for name in one)
    told = {name: float(np.mean([one[name] for one in every if name in one])) for name in names}
    if "cost/device_hours" in told:
        told["cost/total_device_hours"] = sum(one.get("cost/device_hours", 0.0) for one in every)
    return told
