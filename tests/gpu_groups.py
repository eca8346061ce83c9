"""A sweep on a cluster of eight GPUs that are numbers: run as a process of its own, since its Ray is. It prints what happened.

Everything is the sweep's, Ray Train's and Ray's scheduler's own; only the computing is a sleep: there is no GPU to compute on.
"""

import functools
import json
import sys
import time
from pathlib import Path

from tiny import TINY

from cromss import transfer
from cromss.attempts import fitted
from cromss.ray_session import connect
from cromss.settings import overlay
from cromss.sweep import SPENDING, announce, conclude, perform, prepare
from cromss.trials.space import Space, grid
from cromss.trials.spending import Ledger
from cromss.trials.work import Work
from cromss.trials.work import judge as real_judge

GROUPS = {"data": {"lanes": 8, "reader": {"kind": "direct"}},
          "scaling": {"num_workers": 4, "use_gpu": True, "cpus_per_worker": 1.0},
          "transfer": {"repeats": 4}}  # fmt: skip


def held(name, out, seconds):
    """Write down which GPUs this process holds, and from when to when."""
    import ray

    began = time.time()
    time.sleep(seconds)
    gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    line = {"what": name, "gpus": gpus, "from": began, "to": time.time()}
    with Path(out, "held.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def worker(job):
    held("worker", job["root"], 1.5)
    return {"final": {"probe/s1/miou": 0.5, "probe/s2/miou": 0.5, "probe/mean/miou": 0.5}, "noise": None}


def pretrain(config, setting, folder, key):
    from cromss import rendezvous

    # the workers hold GPUs, and none is there to speak NCCL
    rendezvous.Rendezvous = functools.partial(rendezvous.Rendezvous, backend="gloo")
    job = {"key": key, "root": setting.out}
    return fitted(worker, job, config, folder, setting.budget.share, [], print)


def judge(config, setting, folder, key):
    transfer.encoders_of = lambda config, folder: {"s1": None, "s2": None}
    root = setting.out
    transfer._judge = lambda *given: judged(root, *given)
    return real_judge(config, setting, folder, key)


def judged(root, tree, folder, downstream, run, source, key):
    held("transfer", root, 0.5)
    scores = {"miou": 0.5, "oa": 0.5, "aa": 0.5, "iou": [0.5] * 8, "classes": list("abcdefgh"), "scheme": "x"}
    return {"modality": run.modality, "mode": run.mode, "repeat": run.repeat, "seconds": 0.5, "head": "fpn"} | scores


def main(data, downstream, out, trials):
    connect(num_cpus=12, num_gpus=8)
    rates = [1e-3 * (1 + number) for number in range(int(trials))]
    space = Space("groups", "Do they fit?", {}, {"optim": {"lr": grid(*rates)}}, "", 1)
    Path(out).mkdir(parents=True, exist_ok=True)
    ready = prepare(space, overlay(TINY, GROUPS), data, downstream, Path(out), work=Work(pretrain, judge))
    budget = ready.setting.budget
    ledger = Ledger(ready.out / SPENDING, budget.devices, budget.unit)
    announce(ready, ledger)
    began = time.monotonic()
    perform(ready, ledger)
    wall = time.monotonic() - began
    outcome = conclude(ready, ledger)
    status = [trial["status"] for trial in outcome["trials"]]
    print(json.dumps({"status": status, "wall": wall, "hours": ledger.hours, "unit": ledger.unit, "devices": budget.devices,
                      "concurrent": budget.concurrent, "transfer_gpus": budget.transfer_gpus}))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
