"""What an audit was asked for, and the folder that holds one audit and no other."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

from cromss.settings import Settings
from cromss.whole import written_whole

ASKED, RESULT = "asked.json", "audit.json"


class AuditConfig(Settings):
    """The questions of an audit.

    flagged     share of the labelled pixels that is flagged: the most suspicious, over the whole set
    alpha       of eq. 3: the share of labels whose weight is 1
    confident   mean probability from which on a class is suggested
    """

    flagged: float = pydantic.Field(0.05, gt=0, lt=1)
    alpha: float = pydantic.Field(0.5, ge=0, le=1)
    per_class: bool = False  # one threshold of eq. 3 for every class, as in the authors' code
    confident: float = pydantic.Field(0.7, ge=0, le=1)
    seasons: Literal["all", "one"] = "all"
    splits: tuple[str, ...] = ()  # () = all
    modalities: tuple[str, ...] = ()  # () = all that the network knows
    limit: int | None = pydantic.Field(None, ge=1)
    maps: bool = True


def claim(out: Path, asked: Mapping[str, Any]) -> None:
    """Make `out` the folder of this audit, or find it to be. Raises ValueError by what differs, and for a folder that holds
    something else."""
    marker = out / ASKED
    if marker.exists():
        try:
            before = json.loads(marker.read_text())
        except ValueError:
            raise ValueError(f"{marker}: cannot be read; choose another --out") from None
        if differing := [name for name in asked if before.get(name) != asked[name]]:
            said = "; ".join(f"{name} {before.get(name)} there, {asked[name]} here" for name in differing)
            raise ValueError(f"--out {out}: holds another audit ({said}); choose another folder")
        return
    try:
        if out.is_dir() and any(out.iterdir()):
            raise ValueError(f"--out {out}: holds other files; choose a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror})") from None
    write_text(marker, json.dumps(dict(asked), indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """A whole file, or none. Raises ValueError where there is no room."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """A whole file, or none. Raises ValueError where there is no room."""
    try:
        with written_whole(path) as aside:
            aside.write_bytes(content)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); nothing was left under that name") from None
