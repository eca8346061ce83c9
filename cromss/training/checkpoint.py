"""A checkpoint is valid or it does not exist.

    <directory>/step-000000120/{*.safetensors, state.json, manifest.json}

Everything is written aside, the manifest with the sha256 of every file last, then the folder is renamed into place.
A resume takes the newest folder whose manifest holds and says which it skipped.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

PREFIX, ASIDE = "step-", ".writing-"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its step, tensor groups (name -> {key: tensor}) and JSON state."""

    path: Path
    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


def save(
    directory: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any], keep: int = 2
) -> Path:
    """Write `step-<step>` with one safetensors file per group; older ones beyond `keep` are removed afterwards.

    Raises OSError when the disk has no room for it (checked before a byte is written).
    """
    directory.mkdir(parents=True, exist_ok=True)
    _room_for(directory, sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values()))
    final = directory / f"{PREFIX}{step:09d}"
    aside = directory / f"{ASIDE}{final.name}-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        for name, group in tensors.items():
            save_file({key: tensor.detach().cpu().contiguous().clone() for key, tensor in group.items()},
                      aside / f"{name}.safetensors")  # fmt: skip
        (aside / "state.json").write_text(json.dumps(state))
        files = {path.name: _digest(path) for path in sorted(aside.iterdir())}
        _write_durably(aside / "manifest.json", json.dumps({"step": step, "sha256": files}))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in _folders(directory)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest_valid(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that holds, and a line for each newer one that does not."""
    skipped = []
    for folder in _folders(directory):
        try:
            return _read(folder), skipped
        except (OSError, ValueError, KeyError) as error:
            skipped.append(f"{folder.name}: skipped, {error}")
    return None, skipped


def _read(folder: Path) -> Checkpoint:
    manifest_path = folder / "manifest.json"
    if not manifest_path.exists():
        raise ValueError("has no manifest")
    manifest = json.loads(manifest_path.read_text())
    for name, digest in manifest["sha256"].items():
        if not (folder / name).exists():
            raise ValueError(f"{name} is missing")
        if _digest(folder / name) != digest:
            raise ValueError(f"{name} does not match its sha256")
    return Checkpoint(
        path=folder,
        step=manifest["step"],
        tensors={path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))},
        state=json.loads((folder / "state.json").read_text()),
    )


def _folders(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{PREFIX}*"), reverse=True) if directory.exists() else []


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_durably(path: Path, text: str) -> None:
    for sibling in path.parent.iterdir():  # the files a manifest vouches for must reach the disk before it does
        with sibling.open("rb") as file:
            os.fsync(file.fileno())
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _room_for(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < 1.1 * needed + 2**20:
        raise OSError(f"{directory}: a checkpoint needs {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free")


# --- what a training run puts in ----------------------------------------------------------------------------------------


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Adam's state as flat tensors `<parameter number>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value) for number, entry in state.items() for name, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`; the hyper-parameters stay as configured."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entry in state.items():
        for name, value in entry.items():
            if value.shape == parameters[number].shape:  # the fused Adam walks both in memory order
                entry[name] = torch.empty_like(parameters[number]).copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
