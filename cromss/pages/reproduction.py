"""`python -m cromss.report --reproduce RUN`: what repeats a run, to be pasted into a shell."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from cromss import provenance
from cromss.journal import read_sweep, read_trial
from cromss.settings import assignments

CONFIG = "config.yaml"


def reproduce(run: str, *, out: Path | None = None, folder: Path | None = None, uri: str | None = None) -> str:
    """The commands under comments that say what else has to be as it was.

    run       a run folder, the folder of a trial, or the id or name of an MLflow run
    out       where the configuration is written and the repeated run goes; without it the text writes the file itself
    folder    the run folder whose MLflow store holds `run`; `uri` names another
    Raises ValueError for a run that is not found.
    """
    found = Path(run)
    if (found / "trial.json").exists():
        trial = read_trial(found)
    elif sweep := read_sweep(found):
        return _sweep(sweep, found)
    elif found.exists():
        raise ValueError(f"{run}: holds no run: neither trial.json nor sweep.json")
    else:
        trial = _tracked(run, folder, uri)
        if "sweep" in trial:
            return _sweep(trial["sweep"], Path(trial["folder"] or run))
    if not trial["config"]:
        raise ValueError(f"{run}: has no configuration, it has only begun")
    return _alone(trial, out)


def _alone(trial: dict[str, Any], out: Path | None) -> str:
    text = yaml.safe_dump(provenance.repeated(trial), sort_keys=False, width=120)
    # A record is data: its key names a folder here and nothing else, whatever it holds.
    place = out or Path("reproduce-" + re.sub(r"[^\w.-]", "_", str(trial["key"])))
    if out is None:
        written = [f"mkdir -p {place}", f"cat > {place / CONFIG} <<'END'", text.rstrip(), "END"]
    else:
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / CONFIG).write_text(text)
        except OSError as error:
            raise ValueError(f"--out {out}: the configuration cannot be written ({error.strerror})") from None
        written = []
    return "\n".join([*provenance.remarks(trial), *written, *provenance.commands(trial, place / CONFIG, place)])


def _sweep(sweep: dict[str, Any], folder: Path) -> str:
    """A sweep is repeated by its own command; its trials record the rest."""
    lines = [f"# {sweep.get('space', '')}: {sweep.get('question', '')}"]
    trials = sorted((folder / "trials").glob("*/trial.json"))
    if trials:
        one = read_trial(trials[0].parent)
        lines += provenance.remarks(one | {"command": ""})[1:]
        lines.append(f"# one trial alone: python -m cromss.report --reproduce {trials[0].parent}")
    return "\n".join([*(" ".join(line.split()) for line in lines), _ours(str(sweep.get("command", "")))])


def _ours(command: str) -> str:
    """A recorded command, quoted anew; only a comment where it is no command of ours, for the text is pasted into a shell."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    program = " ".join(words[:3])
    if program.startswith(("python -m cromss", "cromss ")):
        return shlex.join(words)
    return f"# its command is none of ours: {' '.join(command.split())}" if command else ""


def _tracked(run: str, folder: Path | None, uri: str | None) -> dict[str, Any]:
    """The trial of an MLflow run: its files where they still are, else what MLflow remembers of them."""
    import os

    from cromss.tracking import find_run, tracking_uri

    if not (uri or folder or os.environ.get("MLFLOW_TRACKING_URI")):
        raise ValueError(
            f"--reproduce {run}: no such folder; for an MLflow run give its run folder DIR, or --tracking-uri URI, too"
        )
    found = find_run(uri or tracking_uri(folder or "."), run)
    tags, kind = found.tags, found.tags.get("cromss.kind", "")
    if kind == "configuration":
        raise ValueError(
            f"--reproduce {run}: is the mean of {tags.get('cromss.seeds', 'several')} trials; name one of them"
        )
    if kind == "downstream":
        found = find_run(uri or tracking_uri(folder or "."), tags["mlflow.parentRunId"])
        tags = found.tags
    here = tags.get("cromss.folder", "")
    if kind not in ("trial", "downstream"):
        return {"folder": here, "sweep": {"space": found.name, "question": tags.get("cromss.question", ""),
                                          "command": tags.get("cromss.command", "")}}  # fmt: skip
    if here and (Path(here) / "trial.json").exists():
        return read_trial(Path(here))
    return {"key": found.id, "arm": tags.get("cromss.arm", ""), "seed": found.params.get("seed", ""),
            "command": tags.get("cromss.command", ""), "config": _config(found.params),
            "provenance": provenance.from_tags(tags)}  # fmt: skip


def _config(params: dict[str, str]) -> dict[str, Any]:
    """The configuration from its dotted keys: MLflow keeps Python's words for values."""
    words = {"None": "null", "True": "true", "False": "false"}
    return assignments(f"{key}={words.get(value, value)}" for key, value in params.items())
