"""A trial: a pretraining and its judgement. What Ray Tune runs, once for every sample of the space."""

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cromss.config import RunConfig, resolve
from cromss.journal import read_json, write_json
from cromss.leaving import Left, asked
from cromss.provenance import collect
from cromss.settings import leaves
from cromss.trials.arms import arm
from cromss.trials.cache import trial_key
from cromss.trials.resources import Budget
from cromss.trials.spending import is_cut
from cromss.trials.work import REAL, Work
from cromss.trials.worlds import World, Worlds

RESERVED = ("arm", "world")  # keys of a sample that are no configuration
SYNTHETIC = "synthetic"  # folder of the synthetic Earths under OUT


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
    work: Work = REAL
    worlds: Worlds | None = None  # where every trial has its own ground; `data` and `downstream` are then the first's

    def of(self, sample: dict[str, Any], seed: int) -> tuple["Setting", World | None]:
        """The setting of a sample on its own world, and that world; without worlds, this setting. Makes no store. Raises
        ValueError for an invalid world."""
        if self.worlds is None:
            return self, None
        world = self.worlds.of(sample, seed)
        data, downstream = world.pretraining, world.downstream
        own = {"data": str(data.path), "downstream": str(downstream.path), "downstream_digest": downstream.digest}
        return replace(self, **own, world=[data.digest, *self.world[1:]]), world


def config_of(sample: dict[str, Any], base: dict[str, Any]) -> RunConfig:
    """The run of a sample: base <- named arm <- sampled overlay. Raises ValueError."""
    overlay = {key: value for key, value in sample.items() if key not in RESERVED}
    named = arm(sample["arm"]).overlay if "arm" in sample else {}
    return resolve(base, named, overlay)


def record_of(sample: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """The trial's record (trial.json) as it stands before it runs. Raises ValueError for an invalid sample."""
    config = config_of(sample, setting.base)
    setting, world = setting.of(sample, config.seed)
    varied = leaves({key: value for key, value in sample.items() if key not in (*RESERVED, "seed")})
    if world:
        varied |= setting.worlds.parameters(sample)
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
        "provenance": collect(
            seed=config.seed,
            device=setting.world[-1],
            data=setting.data,
            downstream=setting.downstream,
            store_digest=setting.world[0],
            downstream_digest=setting.downstream_digest,
        ),
        "downstream": [],
        **({"world": setting.worlds.told(sample, config.seed)} if world else {}),
    }


def _arm(config: RunConfig) -> str:
    """The row that a configuration belongs to in the paper's table."""
    if not config.pretraining.reads_labels:
        return config.pretraining.title
    fusion = {"single": "single-modal", "middle": "midF", "late": "lateF"}[config.model.fusion.kind]
    title = config.objective.method.title
    return f"{title}-{fusion}" if title else fusion


def _single(config: RunConfig) -> dict[str, Any]:
    fusion, pretraining = config.model.fusion, config.pretraining
    single = {"model.fusion.modality": fusion.modality} if fusion.kind == "single" else {}
    # MoCo of this run, or imported: the row is the same
    return single | ({} if pretraining.kind in ("pretrain", "random") else {"pretraining.kind": pretraining.kind})


def run_trial(sample: dict[str, Any], setting: Setting) -> None:
    """Tune's function trainable. A finished trial of the same address is reported, not repeated, and so is one that was
    stopped early; one that the budget cut off goes on. A failure is recorded with its reason and the sweep goes on. Where the
    sweep was asked to leave, the trial does, and its record stays that of a running one."""
    import ray.tune

    record = record_of(sample, setting)
    folder = Path(setting.out) / "trials" / record["key"]
    if (before := read_json(folder / "trial.json")) and _settled(before, record):
        ray.tune.report(_reported(before))
        return
    if asked([Path(setting.out)]):
        return
    # which line of the ledger this attempt is, what it holds, and what its parts took in seconds
    held = {"devices": setting.budget.devices, "unit": setting.budget.unit}
    record["clock"] = clock = {"attempt": ray.tune.get_context().get_trial_id(), "began": time.time(), **held}
    began = time.monotonic()
    write_json(folder / "trial.json", record)
    try:
        config = resolve(record["config"])
        setting, world = setting.of(sample, config.seed)
        if world:
            _, clock["stores"] = _timed(_made, world, config)
        pretrained, clock["pretraining"] = _timed(setting.work.pretrain, config, setting, folder, record["key"])
        record |= {"final": pretrained.get("final", {}), "noise": pretrained.get("noise"), "pretraining": pretrained}
        write_json(folder / "trial.json", record)
        judged, clock["judging"] = _timed(setting.work.judge, config, setting, folder, record["key"])
        record["downstream"] = sorted(judged, key=lambda r: json.dumps([r["modality"], r["mode"], r["repeat"]]))
        record |= {"status": "done", "seconds": time.monotonic() - began}
    except Left:
        return
    except Exception as error:  # whatever went wrong with one trial is its own affair
        if asked([Path(setting.out)]):  # its workers are being ended: no failure of its own
            return
        (folder / "error.txt").write_text(traceback.format_exc())
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        write_json(folder / "trial.json", record | {"status": "failed", "reason": reason})
        ray.tune.report(_reported(record))
        return
    write_json(folder / "trial.json", record)
    ray.tune.report(_reported(record))


def _settled(before: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether an earlier attempt has said the last word: done, or stopped early where trials still are."""
    stops_early = record["config"]["sweep"]["stopping"]["kind"] != "none"
    return before["status"] == "done" or (before["status"] == "stopped" and not is_cut(before) and stops_early)


def _made(world: World, config: RunConfig) -> None:
    """The stores that this trial reads."""
    world.downstream.make()
    if config.pretraining.trains:
        world.pretraining.make()


def _timed(part: Callable[..., Any], *given: Any) -> tuple[Any, float]:
    began = time.monotonic()
    return part(*given), time.monotonic() - began


def _reported(record: dict[str, Any]) -> dict[str, Any]:
    """The last word to Tune: the search and the scheduler see the probe, never the test set."""
    final, epochs = record.get("final") or {}, record["config"]["optim"]["epochs"]
    metric = record["config"]["sweep"]["metric"]
    last = record.get("last") or {"score": final.get(f"probe/{metric}/miou", 0.0), "epoch": epochs}
    return last | {"key": record["key"]}
