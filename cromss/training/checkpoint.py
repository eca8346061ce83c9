"""A checkpoint is valid or it does not exist.

    <folder>/step-000000120/{*.safetensors, state.json, manifest.json}

On a disk everything is written aside, the manifest with the sha256 of every file last, then the folder is renamed into
place. In a bucket the manifest is written last: without it there is no checkpoint, whatever else lies there. A resume
takes the newest one whose files have the sha256 of its manifest, and says which it skipped.
"""

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from cromss.files import Folder, fault, sha256

PREFIX, ASIDE, MANIFEST, STATE = "step-", ".writing-", "manifest.json", "state.json"
TENSORS = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its step, tensor groups (name -> {key: tensor}) and JSON state."""

    folder: Folder
    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]

    @property
    def path(self) -> Path | str:
        """Where it lies: a path, or a bucket's URI."""
        return self.folder.local or self.folder.address


def save(
    directory: str | Path | Folder,
    step: int,
    tensors: dict[str, dict[str, torch.Tensor]],
    state: dict[str, Any],
    keep: int = 2,
) -> Path | str:
    """Write `step-<step>` with one safetensors file per group; older ones beyond `keep` are removed afterwards.

    Raises OSError when the disk has no room for it (checked before a byte is written), or the bucket does not take it.
    """
    folder = Folder.of(directory)
    final = folder / f"{PREFIX}{step:09d}"
    whole = {name: {key: t.detach().cpu().contiguous().clone() for key, t in group.items()}
             for name, group in tensors.items()}  # fmt: skip
    if folder.local:
        _save_here(folder.local, final.local, step, whole, state)
    else:
        _upload(final, step, whole, state)
    for old in _folders(folder)[keep:]:
        with contextlib.suppress(OSError):  # it is removed after the next one
            if not old.local:
                old.remove(MANIFEST)
            old.remove_all()
    return final.local or final.address


def _save_here(directory: Path, final: Path, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(f"{ASIDE}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    _room_for(directory, sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values()))
    aside = directory / f"{ASIDE}{final.name}-{os.getpid()}"
    aside.mkdir()
    try:
        for name, group in tensors.items():
            try:
                safetensors.torch.save_file(group, aside / f"{name}{TENSORS}")
            except SafetensorError as error:  # a disk that filled meanwhile is told in words only
                raise OSError(f"{aside / name}{TENSORS}: {error}") from None
        (aside / STATE).write_text(json.dumps(state))
        files = {path.name: sha256(path) for path in sorted(aside.iterdir())}
        _write_durably(aside / MANIFEST, json.dumps({"step": step, "sha256": files}))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _upload(final: Folder, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
    """Through memory: a node's own disk may be small."""
    digests = {}

    def write(name: str, content: bytes) -> None:
        final.write(name, content)
        digests[name] = hashlib.sha256(content).hexdigest()

    try:
        for name, group in tensors.items():
            write(f"{name}{TENSORS}", safetensors.torch.save(group))
        write(STATE, json.dumps(state).encode())
        final.write(MANIFEST, json.dumps({"step": step, "sha256": digests}).encode())
    except OSError as error:
        raise OSError(f"{final}: cannot be written ({fault(error)})") from None


def newest_name(directory: str | Path | Folder) -> str:
    """Name of the newest checkpoint, valid or not; empty where there is none, or its bucket does not answer."""
    try:
        return next((one.name for one in _folders(Folder.of(directory))), "")
    except OSError:
        return ""


def newest_valid(directory: str | Path | Folder) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that holds, and a line for each newer one that does not.

    Raises OSError when a bucket does not answer or refuses: to begin anew would then overwrite what lies there.
    """
    folder, skipped = Folder.of(directory), []
    try:
        for one in _folders(folder):
            try:
                return _read(one), skipped
            except (ValueError, KeyError, TypeError, FileNotFoundError, RecursionError, SafetensorError) as error:
                skipped.append(f"{one.name}: skipped, {error}")
            except OSError as error:
                if not one.local:
                    raise
                skipped.append(f"{one.name}: skipped, {error}")
    except OSError as error:
        raise OSError(f"{folder}: checkpoints cannot be read ({fault(error)})") from None
    return None, skipped


def _read(folder: Folder) -> Checkpoint:
    files: dict[str, bytes] = {}
    if folder.size(MANIFEST) is None:
        raise ValueError("has no manifest")
    manifest = json.loads(folder.read(MANIFEST))
    for name, digest in manifest["sha256"].items():
        if folder.size(name) is None:
            raise ValueError(f"{name} is missing")
        files[name] = folder.read(name)
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise ValueError(f"{name} does not match its sha256")
    return Checkpoint(
        folder=folder,
        step=manifest["step"],
        tensors={
            name.removesuffix(TENSORS): safetensors.torch.load(content)
            for name, content in files.items()
            if name.endswith(TENSORS)
        },
        state=json.loads(files[STATE]),
    )


def _folders(directory: Folder) -> list[Folder]:
    """Of all checkpoints, whole or not, the newest first."""
    return [directory / name for name in reversed(directory.names()) if name.startswith(PREFIX)]


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
