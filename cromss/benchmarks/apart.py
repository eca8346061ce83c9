"""Sides measured in processes of their own: what they hold is theirs alone, and no compilation or cache is shared."""

import argparse
import json
import subprocess
import sys
from typing import Any

import torch

from cromss.benchmarks.sides import SIDES
from cromss.config import RunConfig
from cromss.costs.hardware import Hardware
from cromss.settings import leaves

PAPER_PAIRS = 55.0  # a second, of one A100

# switch -> what it is set to instead; measured on a GPU only
CUDA_SWITCHES = {"scaling.branches": ("streams",), "scaling.double_buffer": ("false",)}


def alone(
    options: argparse.Namespace,
    side: str,
    *,
    batch: int | None = None,
    steps: int | None = None,
    sets: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What `measure` reports of a side in a fresh process, as plain values; `{"failed": why}` where memory ran out.

    Raises ValueError with the other process's words for a configuration that cannot be, RuntimeError for any other end.
    """
    batch, steps = batch or options.batch, steps or options.steps
    words = ["--side", side, "--batch", batch, "--steps", steps, "--size", options.size, "--device", options.device]
    words += ["--fields-of", options.fields_of]
    for name in ("encoder", "fusion", "threads"):
        words += [f"--{name}", value] if (value := getattr(options, name)) else []
    for pair in (*options.sets, *sets):
        words += ["--set", pair]
    command = [sys.executable, "-m", "cromss.bench", "step", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    if done.returncode == 2:
        raise ValueError(said[-1].partition(": ")[2])
    if done.returncode == -9 or "OutOfMemoryError" in said[-1]:
        return {"failed": "does not fit into the memory"}
    raise RuntimeError(f"{' '.join(command)}: {said[-1]}")


# --- numbers of pairs -------------------------------------------------------------------------------------------------


def measure_batches(options: argparse.Namespace, gflop: float, hardware: Hardware) -> list[dict[str, Any]]:
    """A row for every number of pairs and side. gflop: of a pair."""
    rows = []
    for pairs in options.batches:
        for side in SIDES:
            found = alone(options, side, batch=pairs)
            row = {"batch": pairs, "side": side, "failed": found.get("failed")}
            if not row["failed"]:
                rate = pairs / found["step_seconds"]
                row |= {
                    "pairs/s": rate,
                    "of the peak": rate * gflop * 1e9 / hardware.flops,
                    "of the paper": rate / PAPER_PAIRS,
                    "memory_bytes": found["memory_bytes"],
                }
            rows.append(row)
    return rows


def batches_table(rows: list[dict[str, Any]]) -> str:
    """The rows for people, against the paper's rate."""
    lines = [
        f"{'pairs a step':>12} {'':8} {'pairs/s':>9} {'of the peak':>12} {'peak memory':>12} "
        f"{f'of the paper: {PAPER_PAIRS:.0f} pairs/s a GPU':>33}"
    ]
    for row in rows:
        if row["failed"]:
            lines.append(f"{row['batch']:12,} {row['side']:8} {row['failed']}")
            continue
        lines.append(
            f"{row['batch']:12,} {row['side']:8} {row['pairs/s']:9,.2f} {row['of the peak']:12.1%} "
            f"{row['memory_bytes'] / 1e9:9.2f} GB {row['of the paper']:31.2f} x"
        )
    return "\n".join(lines)


# --- switches ---------------------------------------------------------------------------------------------------------


def switches_of(config: RunConfig, pairs: int, device: torch.device) -> list[tuple[str, str]]:
    """(key, other value) of every switch that means something here, `config` aside."""
    others = {
        "scaling.channels_last": ("false", "true"),
        "scaling.compile": ("none", "objective", "networks", "all"),
        "scaling.fused_adam": ("false", "true"),
        "optim.precision": ("float32", "bfloat16"),
        "scaling.micro_batch": (str(pairs // 2),) if pairs > 1 else (),
    }
    if device.type == "cuda":
        others |= CUDA_SWITCHES
    standing = {key: _word(value) for key, value in leaves(config.model_dump(mode="json")).items()}
    if standing["scaling.compile"] == "auto":
        standing["scaling.compile"] = "all" if device.type == "cuda" else "none"
    if standing["optim.precision"] == "auto":
        standing["optim.precision"] = "bfloat16" if device.type == "cuda" else "float32"
    return [(key, value) for key, values in others.items() for value in values if value != standing[key]]


def measure_switches(options: argparse.Namespace, config: RunConfig, device: torch.device) -> list[dict[str, Any]]:
    """Our side as configured, with every switch turned, and as configured again, which shows the noise."""
    turned = switches_of(config, options.batch, device)
    print(
        f"{len(turned) + 2} runs in processes of their own; compiling the networks takes minutes, on a CPU above all ...",
        flush=True,
    )
    rows = [_switched(options, "as configured")]
    rows += [_switched(options, f"{key}={value}", f"{key}={value}") for key, value in turned]
    return [*rows, _switched(options, "as configured, again")]


def switches_table(rows: list[dict[str, Any]]) -> str:
    """The rows for people; ratios to the first."""
    base = rows[0]
    lines = [f"{'our side':32} {'step, ms':>10} {'pairs/s':>9} {'as fast':>10} {'peak memory':>12} {'of it':>8}"]
    for row in rows:
        if row["failed"]:
            lines.append(f"{row['name']:32} {row['failed']}")
            continue
        ratios = ("", "")
        if not base["failed"]:
            ratios = (
                f"{base['seconds'] / row['seconds']:.2f} x",
                f"{row['memory_bytes'] / base['memory_bytes']:.2f} x",
            )
        lines.append(
            f"{row['name']:32} {1000 * row['seconds']:10,.1f} {row['pairs/s']:9,.2f} {ratios[0]:>10} "
            f"{row['memory_bytes'] / 1e9:9.2f} GB {ratios[1]:>8}"
        )
    return "\n".join(lines)


def _switched(options: argparse.Namespace, name: str, *sets: str) -> dict[str, Any]:
    try:
        found = alone(options, "ours", sets=sets)
    except (RuntimeError, ValueError) as error:  # a switch that cannot be turned here is no reason to lose the others
        found = {"failed": str(error).rpartition(": ")[2]}
    if "failed" in found:
        return {"name": name, "failed": found["failed"]}
    seconds = found["step_seconds"]
    return {
        "name": name,
        "failed": None,
        "seconds": seconds,
        "pairs/s": options.batch / seconds,
        "memory_bytes": found["memory_bytes"],
    }


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
