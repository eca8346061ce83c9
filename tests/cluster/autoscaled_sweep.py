"""A sweep on the cluster that RAY_ADDRESS names, and what becomes of the cluster meanwhile; run by test_autoscaling.

    python autoscaled_sweep.py DATA DOWNSTREAM OUT IDLE_SECONDS

Its trials hold GPUs as a pretraining of four workers does, and rest there. Prints a line of JSON per event.
"""

import json
import sys
import threading
import time
from pathlib import Path

from tiny import TINY

from cromss.journal import read_trials
from cromss.ray_session import capacity, connect
from cromss.settings import overlay
from cromss.sweep import SPENDING, announce, conclude, perform, prepare
from cromss.trials.space import Space, grid
from cromss.trials.spending import Ledger
from cromss.trials.work import Work

SECONDS = 4.0  # that a trial trains
RATES = (1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3)
AFTER = 60.0  # seconds beyond the idle timeout that the cluster may take to shrink


def pretrain(config, setting, folder, key):
    """Four workers of one GPU each, placed together or not at all, as Ray Train places them."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    share = setting.budget.share
    bundle = {"CPU": share.cpus, "GPU": share.gpus}
    group = placement_group([bundle] * share.workers)
    ray.get(group.ready())
    strategy = PlacementGroupSchedulingStrategy(group)
    train = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, scheduling_strategy=strategy)(_train)
    nodes = ray.get([train.remote() for _ in range(share.workers)])
    remove_placement_group(group)
    return {"final": {"probe/mean/miou": config.optim.lr}, "nodes": sorted(set(nodes)), "workers": len(nodes)}


def _train():
    import ray

    time.sleep(SECONDS)
    return ray.get_runtime_context().get_node_id()


def judge(config, setting, folder, key):
    return [{"modality": "s2", "mode": "frozen", "repeat": 0, "miou": config.optim.lr, "oa": 0.5, "aa": 0.5}]


def watch(out: Path, stop: threading.Event) -> None:
    """A line whenever the cluster or the trials have changed."""
    import ray

    before, last = None, False
    while not last:
        last = stop.wait(0.25)
        status = [trial["status"] for trial in read_trials(out)]
        now = (sum(node["Alive"] for node in ray.nodes()), status.count("running"), status.count("done"))
        if now != before:
            say("moment", nodes=now[0], running=now[1], done=now[2])
        before = now


def say(event: str, **what: object) -> None:
    print(json.dumps({"event": event, "at": round(time.monotonic() - BEGAN, 2)} | what), flush=True)


def main(data: str, downstream: str, out: Path, idle_seconds: float) -> None:
    import ray

    connect()
    say("connected", resources=ray.cluster_resources(), capacity=capacity())
    space = Space("rates", "Which rate?", {}, {"optim": {"lr": grid(*RATES)}}, "", 1)
    base = overlay(TINY, {"scaling": {"num_workers": 4, "use_gpu": True}})
    ready = prepare(space, base, data, downstream, out, work=Work(pretrain, judge))
    plan = ready.setting.budget
    say("planned", concurrent=plan.concurrent, workers=plan.share.workers, gpus=plan.share.gpus, unit=plan.unit)
    ledger, stop = Ledger(out / SPENDING, plan.devices, plan.unit), threading.Event()
    watcher = threading.Thread(target=watch, args=(out, stop))
    announce(ready, ledger)
    watcher.start()
    perform(ready, ledger)
    say("finished")
    until = time.monotonic() + idle_seconds + AFTER
    while sum(node["Alive"] for node in ray.nodes()) > 1 and time.monotonic() < until:
        time.sleep(0.25)
    stop.set()
    watcher.join()
    say("idle", nodes=sum(node["Alive"] for node in ray.nodes()))
    trials = conclude(ready, ledger)["trials"]
    told = [{"status": trial["status"], "reason": trial["reason"]} | trial["pretraining"] for trial in trials]
    say("concluded", trials=told, hours=ledger.hours)


if __name__ == "__main__":
    BEGAN = time.monotonic()
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]))
