"""A run folder with random but plausible numbers and pictures, as a finished sweep leaves it."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from cromss.journal import Entry, Journal
from cromss.landcover import DFC2020, DYNAMIC_WORLD

ARMS = {  # frozen S1, S2
    "random": (0.285, 0.288),
    "single-modal": (0.441, 0.532),
    "midF": (0.456, 0.547),
    "CromSS-midF": (0.452, 0.553),
    "CromSS-lateF": (0.449, 0.549),
    "oracle": (0.463, 0.566),
    "SCE-midF": (0.458, 0.545),
    "ELR-midF": (0.455, 0.549),
}
SPECTRA = np.array([[30, 60, 95], [35, 70, 38], [104, 135, 66], [66, 92, 82], [172, 150, 88], [140, 120, 75],
                    [168, 150, 142], [196, 176, 150], [236, 240, 246]])  # fmt: skip


def make(
    out: Path, *, arms=tuple(ARMS), seeds=3, repeats=2, epochs=10, failed=True, size=48, modes=("frozen",)
) -> Path:
    """Write the folder; the same numbers every time."""
    out.mkdir(parents=True, exist_ok=True)
    sweep = {
        "space": "cromss", "question": "Does selecting labels by cross-modal confidence make better encoders?",
        "command": "python -m cromss.sweep cromss --out runs/first", "metric": "mean", "seeds": seeds,
        "repeats": repeats, "created": "2026-11-22T09:30:00+00:00", "paper_rows": True, "store_digest": "sha256:91ab",
        "downstream_digest": "sha256:77fe",
    }  # fmt: skip
    (out / "sweep.json").write_text(json.dumps(sweep))
    for place, arm in enumerate(arms):
        for seed in range(seeds):
            rng = np.random.default_rng([place, seed])
            folder = out / "trials" / f"{arm.lower()}-{seed}"
            folder.mkdir(parents=True)
            (folder / "trial.json").write_text(json.dumps(trial(folder.name, arm, seed, repeats, rng, modes)))
            if arm != "random":
                journal(folder, ARMS[arm], epochs, rng)
                np.savez(folder / "panels.npz", **pretraining_panels(5, size, rng))
                np.savez(folder / "selection.npz", **selection(4, size, epochs, rng))
            for mode in modes:
                for modality in ("s1", "s2"):
                    path = folder / "transfer" / f"{modality}-{mode}-0"
                    path.mkdir(parents=True)
                    np.savez(path / "panels.npz", **transfer_panels(3, size, 0.3 if arm == "random" else 0.12, rng))
    ledger(out)
    if failed:
        broken = out / "trials" / "midf-bad"
        broken.mkdir()
        record = {"key": "midf-bad", "arm": "midF", "seed": 9, "status": "failed", "config": {}, "parameters": {},
                  "reason": "loss is nan at step 40 <optim.lr=5>: lower optim.lr", "downstream": []}  # fmt: skip
        (broken / "trial.json").write_text(json.dumps(record))
    return out


def trial(key: str, arm: str, seed: int, repeats: int, rng: np.random.Generator, modes=("frozen",)) -> dict:
    config = {"seed": seed, "model": {"encoder": "resnet18", "fusion": {"kind": "middle"}},
              "objective": {"alpha": {"end": 0.5, "ramp": {"kind": "exponential"}}},
              "optim": {"lr": 5e-4, "epochs": 10}}  # fmt: skip
    downstream = [
        judged(modality, mode, repeat, centre + 0.05 * (mode != "frozen") + rng.normal(0, 0.004), rng)
        for modality, centre in zip(("s1", "s2"), np.array(ARMS[arm]) + rng.normal(0, 0.006, 2), strict=True)
        for mode in modes
        for repeat in range(repeats)
    ]
    noise = None
    if arm != "random":
        noise = {"rate": 0.224}
        for modality, found in (("s1", 0.82), ("s2", 0.865)):
            edges = np.linspace(0, 1, 31)
            right, wrong = rng.beta(3, 1.5, 4000), rng.beta(1.2, 3.5, 1200)
            noise[modality] = {
                "auroc_F": found + rng.normal(0, 0.004), "auroc_F_enhanced": found + 0.012 + rng.normal(0, 0.004),
                "auroc_W": found - 0.01 + rng.normal(0, 0.004), "auprc_W": found - 0.3, "auprc_F_enhanced": found - 0.25,
                "histogram": {"edges": edges.tolist(), "right": np.histogram(right, edges)[0].tolist(),
                              "wrong": np.histogram(wrong, edges)[0].tolist()},
            }  # fmt: skip
    return {"key": key, "arm": arm, "seed": seed, "status": "done", "reason": "", "config": config, "noise": noise,
            "command": f"python -m cromss.pretrain --set seed={seed}", "parameters": {}, "seconds": 41.0,
            "final": {"val/loss": 1.2}, "downstream": downstream, "provenance": provenance(seed),
            "clock": {"attempt": key, "began": 1.7e9, "devices": 1.0, "unit": "core-hours", "judging": 9 + rng.normal(),
                      "pretraining": 0.1 if arm == "random" else 32 + 3 * rng.normal()}}  # fmt: skip


def provenance(seed: int) -> dict:
    return {"packages": {"cromss": "0.1.0", "torch": "2.13.0", "ray": "2.60.0", "numpy": "2.4.6"}, "python": "3.11.7",
            "git": {"revision": "9e73800c41f2" + "0" * 28, "dirty": False}, "host": "cpu", "seed": seed,
            "data": "/data/pretraining", "downstream": "/data/downstream", "store_digest": "sha256:91ab",
            "downstream_digest": "sha256:77fe"}  # fmt: skip


def ledger(out: Path) -> None:
    """Every trial held its core for as long as it says and a tenth more, one after the other."""
    now, lines = 1.7e9, []
    for path in sorted(out.glob("trials/*/trial.json")):
        clock = json.loads(path.read_text())["clock"]
        for event, held, seconds in (
            ("start", 1.0, 1.1 * (clock["pretraining"] + clock["judging"])),
            ("end", 0.0, 0.0),
        ):
            lines.append({"time": now, "held": held, "unit": "core-hours", "event": event, "trial": clock["attempt"],
                          "attempt": "a"})  # fmt: skip
            now += seconds
    (out / "spending.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def space(out: Path, *, arms=("midF", "CromSS-midF", "SCE-midF"), rates=(0.0, 0.2, 0.4, 0.6), seeds=3) -> Path:
    """A sweep over noise rate, learning rate and ramp: the rate costs 30 points by design and CromSS half of that, the
    learning rate a few, the ramp none. Without pictures."""
    make(out, arms=(), failed=False)
    sweep = json.loads((out / "sweep.json").read_text())
    question = "How much label noise does selection bear?"
    (out / "sweep.json").write_text(json.dumps(sweep | {"space": "noise_rate", "question": question, "seeds": seeds}))
    combinations = itertools.product(arms, rates, (2e-4, 2e-3, 2e-2), ("exponential", "linear"))
    for place, (arm, rate, lr, ramp) in enumerate(combinations):
        for seed in range(seeds):
            rng = np.random.default_rng([place, seed])
            folder = out / "trials" / f"{place:03d}-{seed}"
            folder.mkdir(parents=True)
            record = trial(folder.name, arm, seed, 1, rng)
            loss = 0.3 * rate * (0.5 if arm.startswith("CromSS") else 1) + 0.02 * abs(math.log10(lr / 2e-3))
            for one in record["downstream"]:
                one["miou"] -= loss
                one["iou"] = [value - loss for value in one["iou"]]
            record["noise"]["rate"] = rate
            record["parameters"] = {"world.noise.rate": rate, "optim.lr": lr, "objective.alpha.ramp.kind": ramp}
            record["world"] = {"seed": seed, "noise": {"kind": "symmetric", "rate": rate}}
            (folder / "trial.json").write_text(json.dumps(record))
            if (place, lr) == (0, 2e-4) or seed == 0:
                journal(folder, ARMS[arm], 6, rng, end=0.3 if ramp == "linear" else 0.5, linear=ramp == "linear")
    ledger(out)
    return out


def judged(modality: str, mode: str, repeat: int, miou: float, rng: np.random.Generator) -> dict:
    classes = len(DFC2020)
    iou = np.clip(miou + rng.normal(0, 0.15, classes), 0.02, 0.95)
    iou += miou - iou.mean()
    confusion = 2000 * rng.dirichlet(np.full(classes, 0.25), classes) * (1 - miou) + np.diag(
        np.full(classes, 2000 * miou)
    )
    return {"modality": modality, "mode": mode, "repeat": repeat, "head": "pspnet", "head_depth": 3, "oa": miou + 0.2,
            "aa": miou + 0.1, "miou": float(iou.mean()), "iou": iou.tolist(), "scheme": "dfc2020",
            "confusion": confusion.astype(int).tolist(), "classes": list(DFC2020.classes)}  # fmt: skip


def journal(
    folder: Path, scores: tuple[float, float], epochs: int, rng: np.random.Generator, *, end: float = 0.5,
    linear: bool = False,
) -> None:  # fmt: skip
    with Journal(folder / "journal", folder.name) as file:
        for epoch in range(1, epochs + 1):
            way = min(epoch / (0.8 * epochs), 1)
            ramp = way if linear else math.exp(-5 * (1 - way) ** 2)
            grown = 1 - math.exp(-epoch / 3)
            metrics = {
                "train/loss": 3.2 - 1.6 * grown + rng.normal(0, 0.03),
                "val/loss": 3.0 - 1.3 * grown + rng.normal(0, 0.04),
                "train/alpha": 1 - (1 - end) * ramp, "train/gamma": ramp, "perf/patches_per_s": 80 + rng.normal(0, 3),
                "probe/s1/miou": scores[0] * grown + rng.normal(0, 0.01),
                "probe/s2/miou": scores[1] * grown + rng.normal(0, 0.01), "noise/rate": 0.224,
            }  # fmt: skip
            for modality, best in (("s1", 0.82), ("s2", 0.865)):
                found = 0.5 + (best - 0.5) * grown
                metrics |= {f"noise/{modality}/{name}": value + rng.normal(0, 0.005) for name, value in (
                    ("auroc_F", found), ("auroc_F_enhanced", found + 0.01), ("auroc_W", 0.5 + (found - 0.5) * ramp),
                    ("auprc_F_enhanced", 0.224 + 0.9 * (found - 0.5)), ("auprc_W", 0.224 + 0.8 * (found - 0.5) * ramp),
                )}  # fmt: skip
            file.append(Entry(48 * epoch, float(epoch), 1.7e9 + epoch, metrics))


def land(n: int, size: int, rng: np.random.Generator, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class maps (n,H,W) with their true colours (n,H,W,3) and backscatter (n,H,W)."""
    fields = gaussian_filter(rng.normal(size=(n, classes, size, size)), (0, 0, size / 12, size / 12), mode="wrap")
    fields /= fields.std((2, 3), keepdims=True)
    fields += rng.normal(0, 0.7, (n, classes, 1, 1))
    clean = fields.argmax(1).astype(np.uint8)
    texture = gaussian_filter(rng.normal(0, 1, (n, size, size, 1)), (0, 1, 1, 0)) * 22
    rgb = np.clip(SPECTRA[clean] + texture, 0, 255).astype(np.uint8)
    s1 = np.clip((60 + 18 * clean) * rng.gamma(5, 1 / 5, clean.shape), 0, 255).astype(np.uint8)
    return clean, rgb, s1


def corrupt(clean: np.ndarray, rate: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Labels that are wrong in patches."""
    wrong = gaussian_filter(rng.normal(size=clean.shape), (0, 2, 2))
    wrong = wrong > np.quantile(wrong, 1 - rate)
    other = (clean + rng.integers(1, classes, (len(clean), 1, 1))) % classes
    return np.where(wrong, other, clean).astype(np.uint8)


def pretraining_panels(n: int, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    classes = len(DYNAMIC_WORLD)
    clean, rgb, s1 = land(n, size, rng, classes)
    label = corrupt(clean, 0.22, classes, rng)
    panels = {"rgb": rgb, "s1": s1, "label": label, "clean": clean, "scheme": np.array(DYNAMIC_WORLD.name),
              "ids": np.array([f"{i:07d}/{2 * i}" for i in range(n)])}  # fmt: skip
    for modality, sharp in (("s1", 0.25), ("s2", 0.16)):
        trust = np.where(label == clean, 0.95, 0.25) + rng.normal(0, sharp, label.shape)
        panels[f"label_weights_{modality}"] = np.clip(gaussian_filter(trust, (0, 1, 1)), 0, 1).astype(np.float16)
        sure = gaussian_filter(rng.uniform(0.2, 1.2, label.shape), (0, 2, 2))
        panels[f"entropy_weights_{modality}"] = np.clip(sure, 0, 1).astype(np.float16)
        panels[f"prediction_{modality}"] = corrupt(clean, 0.12, classes, rng)
    return panels


def selection(n: int, size: int, epochs: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """As `training.pictures.Selection` writes it: trust in wrong labels falls over six epochs."""
    first, frames = pretraining_panels(n, size, rng), 6
    arrays = {key: first[key] for key in ("rgb", "s1", "label", "clean", "scheme", "ids")}
    arrays["epochs"] = np.linspace(1, epochs, frames).round().astype(np.int64)
    for modality in ("s1", "s2"):
        final = first[f"label_weights_{modality}"].astype(float)
        way = np.linspace(0, 1, frames)[None, :, None, None]
        weights = ((1 - way) * 1.0 + way * final[:, None]).astype(np.float16)
        arrays |= {f"label_weights_{modality}": weights, f"confidence_{modality}": weights,
                   f"prediction_{modality}": np.repeat(first[f"prediction_{modality}"][:, None], frames, 1)}  # fmt: skip
    return arrays


def transfer_panels(n: int, size: int, error: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    clean, rgb, s1 = land(n, size, np.random.default_rng(5), len(DFC2020))
    return {"rgb": rgb, "s1": s1, "reference": clean, "prediction": corrupt(clean, error, len(DFC2020), rng),
            "ids": np.array([f"p{i}" for i in range(n)]), "scheme": np.array(DFC2020.name)}  # fmt: skip
