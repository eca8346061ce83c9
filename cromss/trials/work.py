"""What a trial does between its records: pretrain, then judge."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cromss.config import RunConfig
from cromss.trials.cache import bring, claimed, pretraining_key

if TYPE_CHECKING:
    from cromss.trials.trial import Setting


def pretrain(config: RunConfig, setting: "Setting", folder: Path, key: str) -> dict[str, Any]:
    """The content of `pretraining.json`; nothing for encoders that are not pretrained here."""
    if not config.pretraining.trains:
        return {}
    from cromss.pretrain import QUARANTINE, pretrain

    address = pretraining_key(config, setting.world)
    with claimed(Path(setting.out), address, folder) as twin:
        if twin is not None:
            return bring(twin, folder)
        return pretrain(
            _own_checkpoints(config, key), setting.data, folder, setting.budget.share, key=key, downstream=setting.downstream,
            report=_scored(config.sweep.metric), show=False, quarantine=Path(setting.out) / QUARANTINE,
            leave=[Path(setting.out)],
        )  # fmt: skip


def judge(config: RunConfig, setting: "Setting", folder: Path, key: str) -> list[dict[str, Any]]:
    """The results of every downstream run, in any order."""
    from cromss.transfer import judge_all, judge_here

    budget = setting.budget
    if not budget.share.workers:
        return judge_here(config, folder, setting.downstream, key=key)
    return list(
        judge_all(
            config, folder, setting.downstream, key=key, cpus=budget.transfer_cpus, gpus=budget.transfer_gpus,
            together=budget.together,
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Both are called in the trial's process with (configuration, setting, folder, key) of the trial."""

    pretrain: Callable[[RunConfig, "Setting", Path, str], dict[str, Any]] = pretrain
    judge: Callable[[RunConfig, "Setting", Path, str], list[dict[str, Any]]] = judge


REAL = Work()


def _own_checkpoints(config: RunConfig, key: str) -> RunConfig:
    """A trial's checkpoints lie in a folder of its own."""
    if config.scaling.checkpoints is None:
        return config
    scaling = config.scaling.model_copy(update={"checkpoints": f"{config.scaling.checkpoints}/{key}"})
    return config.model_copy(update={"scaling": scaling})


def _scored(metric: str) -> Any:
    """What Tune's scheduler and search look at: `score` and `epoch`."""

    def report(metrics: dict[str, float], send: Any) -> None:
        send({"score": metrics.get(f"probe/{metric}/miou", 0.0), "epoch": metrics["epoch"]})

    return report
