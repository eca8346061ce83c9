"""Ray Tune: which trial runs when, which is stopped early, which is tried next."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cromss.config import RunConfig
from cromss.journal import read_json, read_trials, write_json
from cromss.leaving import asked
from cromss.ray_session import unique_name
from cromss.trials.spending import CUT, Ledger, is_left, watched
from cromss.trials.trial import Setting, record_of, run_trial

CONFIRMED = 3  # configurations that a guided search repeats with the other seeds


def run(samples: Sequence[dict[str, Any]], setting: Setting, config: RunConfig, ledger: Ledger) -> None:
    """Run these samples; under `sweep.stopping.kind=asha` those whose probe falls behind are stopped."""
    from ray import tune

    scheduler = None
    if config.sweep.stopping.kind == "asha":
        scheduler = tune.schedulers.ASHAScheduler(
            time_attr="epoch",
            max_t=config.optim.epochs + 1,  # at max_t a trial would be stopped before it is judged
            grace_period=max(1, round(config.sweep.stopping.grace * config.ramp_epochs)),
            reduction_factor=config.sweep.stopping.reduction,
        )
    space = {"sample": tune.grid_search(list(samples))}
    _fit(_tuner(setting, config, space, ledger, scheduler=scheduler), setting, config.seed, ledger)


def search(space: dict[str, Any], setting: Setting, config: RunConfig, samples: int, ledger: Ledger) -> None:
    """Optuna (TPE) on the frozen probe with one seed, then the best configurations again with the other seeds.

    Trials that an earlier attempt left unfinished go on first; all its trials are told to the search, so that a resumed
    sweep repeats none of them.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    if unfinished := [t["sample"] for t in read_trials(setting.out) if is_left(t) and "sample" in t]:
        run(unfinished, setting, config, ledger)
    metric = f"probe/{config.sweep.metric}/miou"
    known = [t for t in read_trials(setting.out) if t["seed"] == config.seed and metric in t["final"]]
    if len(known) < samples and not ledger.exhausted:
        told = {
            "points_to_evaluate": [_flat(_without_seed(t["sample"])) for t in known],
            "evaluated_rewards": [t["final"][metric] for t in known],
        }
        guide = OptunaSearch(
            space=OptunaSearch.convert_search_space(space),
            sampler=optuna.samplers.TPESampler(seed=config.seed + len(known)),
            metric="score",
            mode="max",
            **(told if known else {}),
        )
        tuner = _tuner(setting, config, None, ledger, search_alg=guide, num_samples=samples - len(known))
        _fit(tuner, setting, config.seed, ledger)
    if ledger.exhausted or asked([Path(setting.out)]):
        return
    done = [t for t in read_trials(setting.out) if t["status"] == "done" and t["seed"] == config.seed]
    best = sorted(done, key=lambda t: -t["final"].get(metric, 0.0))[:CONFIRMED]
    others = range(config.seed + 1, config.seed + config.sweep.seeds)
    if again := [_without_seed(t["sample"]) | {"seed": seed} for t in best for seed in others]:
        run(again, setting, config, ledger)


HEAD = "node:__internal_head__"  # Ray gives its head 1 of it


def _held(setting: Setting) -> dict[str, float]:
    """What Tune reserves for a trial. One that only waits for its Train workers stays on a head that computes nothing: that is
    the node which no cloud takes back, and none has to be started for it."""
    import ray

    heads = [node["Resources"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]]
    idle = bool(heads) and not any(resources.get("CPU") for resources in heads)
    return {HEAD: 0.001} if idle and setting.budget.share.workers else setting.budget.trial


def _tuner(setting: Setting, config: RunConfig, space: dict[str, Any] | None, ledger: Ledger, **how: Any) -> Any:
    from ray import tune
    from ray.tune.execution import class_cache

    # Tune hands the driver's AWS keys to its trials as a runtime environment, which Ray writes into its logs. Trials need none
    # of it: a local Ray inherits the environment, nodes of a cluster have roles of their own.
    own = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE = own
    # trials that the budget ends before their first report are no news
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    seed = config.seed

    def trial(config: dict[str, Any]) -> None:
        run_trial(_sample(config, seed), setting)

    return tune.Tuner(
        tune.with_resources(trial, _held(setting)),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            max_concurrent_trials=setting.budget.concurrent,
            reuse_actors=not setting.budget.share.workers,
            trial_dirname_creator=lambda trial: trial.trial_id,
            **how,
        ),
        run_config=tune.RunConfig(
            name=unique_name("tune"),
            storage_path=str(Path(setting.out) / "ray"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.scaling.max_failures),  # its process has died
            **watched(ledger, Path(setting.out)),
        ),
    )


def _fit(tuner: Any, setting: Setting, seed: int, ledger: Ledger) -> None:
    """Run, and give every trial that Tune ended without a last word its status: cut off by the budget, stopped early, or
    failed with a reason. A trial that never began has none."""
    try:
        results = tuner.fit()
    finally:
        ledger.close()
    for result in results:
        if not result.config:
            continue
        record = record_of(_sample(result.config, seed), setting)
        path = Path(setting.out) / "trials" / record["key"] / "trial.json"
        known = read_json(path) or record
        if known["status"] != "running":
            continue
        cut, metrics = Path(result.path).name in ledger.cut, result.metrics or {}
        changed: dict[str, Any]
        if cut and not ledger.exhausted:  # at SIGTERM: it has left, and goes on with the same command
            continue
        if cut:
            changed = {"status": "stopped", "reason": f"{CUT}the cap of {ledger.cap:g} {ledger.unit} was met"}
        elif result.error:
            changed = {"status": "failed", "reason": " ".join(str(result.error).split())[-500:]}
        elif "score" in metrics:
            changed = {"status": "stopped", "reason": "stopped early: its probe was behind"}
            changed["last"] = {key: metrics[key] for key in ("score", "epoch") if key in metrics}
        else:  # it came to a sweep that was ending, and has not begun
            continue
        write_json(path, known | changed)


def _sample(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """The sample behind Tune's configuration: as planned, or, flat, from the search."""
    return config["sample"] if "sample" in config else _nested(config) | {"seed": seed}


def _without_seed(sample: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sample.items() if key != "seed"}


def _flat(sample: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in sample.items():
        flat |= _flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """`{"a/b": 1}` as `{"a": {"b": 1}}`: the search's distributions are flat."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split("/")
        level = tree
        for part in path:
            level = level.setdefault(part, {})
        level[last] = _nested(value) if isinstance(value, dict) else value
    return tree
