"""A trial: a pretraining and its judgement. What Ray Tune runs, once for every sample of the space."""

import json
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cromss.config import RunConfig, resolve
from cromss.journal import read_json, write_json
from cromss.settings import leaves
from cromss.trials.arms import arm
from cromss.trials.cache import bring, claimed, pretraining_key, trial_key
from cromss.trials.resources import Budget

RESERVED = ("arm",)  # keys of a sample that are no configuration


@dataclass(frozen=True)
class Setting:
    """What all trials of a sweep have in common."""

    base: dict[str, Any]  # overlay of preset, YAML and --set
    data: str
    downstream: str
    out: str
    budget: Budget
    command: str
    world: list[str]  # store, sources, torch, device: what a pretraining's address depends on beside its configuration
    downstream_digest: str


def config_of(sample: dict[str, Any], base: dict[str, Any]) -> RunConfig:
    """The run of a sample: base <- named arm <- sampled overlay. Raises ValueError."""
    overlay = {key: value for key, value in sample.items() if key not in RESERVED}
    named = arm(sample["arm"]).overlay if "arm" in sample else {}
    return resolve(base, named, overlay)


def record_of(sample: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """The trial's record (trial.json) as it stands before it runs. Raises ValueError for an invalid sample."""
    config = config_of(sample, setting.base)
    varied = {key: value for key, value in leaves(sample).items() if key not in (*RESERVED, "seed")}
    return {
        "key": trial_key(config, setting.world, setting.downstream_digest),
        "arm": arm(sample["arm"]).label if "arm" in sample else _arm(config),
        "seed": config.seed,
        "status": "running",
        "reason": "",
        "sample": sample,
        "config": config.model_dump(mode="json"),
        "parameters": varied | _single(config),
        "command": setting.command,
        "downstream": [],
    }


def _arm(config: RunConfig) -> str:
    """The row that a configuration belongs to in the paper's table."""
    if config.pretraining.kind != "pretrain":
        return config.pretraining.kind
    fusion = {"single": "single-modal", "middle": "midF", "late": "lateF"}[config.model.fusion.kind]
    selection = {"cromss": "CromSS-", "oracle": "oracle-", "none": ""}[config.objective.selection.kind]
    return f"{selection}{fusion}"


def _single(config: RunConfig) -> dict[str, Any]:
    fusion = config.model.fusion
    return {"model.fusion.modality": fusion.modality} if fusion.kind == "single" else {}


def run_trial(sample: dict[str, Any], setting: Setting) -> None:
    """Tune's function trainable. A finished trial of the same address is reported, not repeated; a failure is recorded
    with its reason and the sweep goes on."""
    import ray.tune

    record = record_of(sample, setting)
    folder = Path(setting.out) / "trials" / record["key"]
    if (before := read_json(folder / "trial.json")) and before["status"] == "done":
        ray.tune.report(_reported(before))
        return
    write_json(folder / "trial.json", record)
    began = time.monotonic()
    try:
        config = resolve(record["config"])
        pretrained = _pretrained(config, setting, folder, record["key"])
        record |= {"final": pretrained.get("final", {}), "noise": pretrained.get("noise"), "pretraining": pretrained}
        write_json(folder / "trial.json", record)
        record["downstream"] = sorted(_judged(config, setting, folder, record["key"]), key=lambda r: json.dumps(
            [r["modality"], r["mode"], r["repeat"]]))  # fmt: skip
        record |= {"status": "done", "seconds": time.monotonic() - began}
    except Exception as error:  # whatever went wrong with one trial is its own affair
        (folder / "error.txt").write_text(traceback.format_exc())
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        write_json(folder / "trial.json", record | {"status": "failed", "reason": reason})
        ray.tune.report(_reported(record))
        return
    write_json(folder / "trial.json", record)
    ray.tune.report(_reported(record))


def _pretrained(config: RunConfig, setting: Setting, folder: Path, key: str) -> dict[str, Any]:
    if config.pretraining.kind != "pretrain":
        return {}
    from cromss.pretrain import QUARANTINE, pretrain

    address = pretraining_key(config, setting.world)
    with claimed(Path(setting.out), address, folder) as twin:
        if twin is not None:
            return bring(twin, folder)
        return pretrain(
            _own_checkpoints(config, key), setting.data, folder, setting.budget.share, key=key, downstream=setting.downstream,
            report=_scored(config.sweep.metric), show=False, quarantine=Path(setting.out) / QUARANTINE,
        )  # fmt: skip


def _own_checkpoints(config: RunConfig, key: str) -> RunConfig:
    """A trial's checkpoints lie in a folder of its own."""
    if config.scaling.checkpoints is None:
        return config
    scaling = config.scaling.model_copy(update={"checkpoints": f"{config.scaling.checkpoints}/{key}"})
    return config.model_copy(update={"scaling": scaling})


def _judged(config: RunConfig, setting: Setting, folder: Path, key: str) -> list[dict[str, Any]]:
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


def _reported(record: dict[str, Any]) -> dict[str, Any]:
    """The last word to Tune: the search and the scheduler see the probe, never the test set."""
    final, epochs = record.get("final") or {}, record["config"]["optim"]["epochs"]
    metric = record["config"]["sweep"]["metric"]
    return {"score": final.get(f"probe/{metric}/miou", 0.0), "epoch": epochs, "key": record["key"]}


def _scored(metric: str) -> Any:
    """What Tune's scheduler and search look at: `score` and `epoch`."""

    def report(metrics: dict[str, float], send: Any) -> None:
        send({"score": metrics.get(f"probe/{metric}/miou", 0.0), "epoch": metrics["epoch"]})

    return report
