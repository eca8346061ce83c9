"""`python tests/faults/instant_sweep.py DATA DOWNSTREAM OUT`: 200 trials without work, of which every tenth fails.

Everything but what lies between the records of a trial is the sweep's own.
"""

import sys
from pathlib import Path
from typing import Any

SEEDS, RATES = 4, 50
CLASSES = 9


def number(rate: float, seed: int) -> int:
    """Which of the 200 a trial is."""
    return SEEDS * round(1e4 * rate - 1) + seed


def fails(trial: int) -> bool:
    return trial % 10 == 3


def reason(trial: int) -> str:
    return f"injected: trial {trial} has a failure of its own"


def score(trial: int, modality: str) -> float:
    """mIoU as fixed as it is disorderly."""
    return (7919 * (trial + 1) + 104_729 * len(modality) + 31 * ord(modality[-1])) % 1009 / 1009


def pretrained(config: Any, setting: Any, folder: Path, key: str) -> dict[str, Any]:
    from cromss.benchmarks.instant import pretrained as instantly

    trial = number(config.optim.lr, config.seed)
    if fails(trial):
        raise RuntimeError(reason(trial))
    return instantly(config, setting, folder, key)


def judged(config: Any, setting: Any, folder: Path, key: str) -> list[dict[str, Any]]:
    from cromss.benchmarks.instant import judged as instantly

    trial = number(config.optim.lr, config.seed)
    return [one | {"miou": score(trial, one["modality"])} for one in instantly(config, setting, folder, key)]


def main(data: str, downstream: str, out: Path) -> None:
    from cromss.benchmarks.instant import BASE
    from cromss.ray_session import connect
    from cromss.settings import overlay
    from cromss.sweep import SPENDING, announce, conclude, perform, prepare
    from cromss.trials.space import Space, grid
    from cromss.trials.spending import Ledger
    from cromss.trials.work import Work

    space = Space(
        "instant", "Which of them?", {}, {"optim": {"lr": grid(*((1 + n) / 1e4 for n in range(RATES)))}}, "", 1
    )
    base = overlay(BASE, {"sweep": {"seeds": SEEDS}})
    out.mkdir()
    connect()
    ready = prepare(space, base, data, downstream, out, work=Work(pretrained, judged))
    ledger = Ledger(out / SPENDING, ready.setting.budget.devices, ready.setting.budget.unit)
    announce(ready, ledger)
    perform(ready, ledger)
    print("RAN", flush=True)
    print(conclude(ready, ledger)["summary"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
