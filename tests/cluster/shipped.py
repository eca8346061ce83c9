"""The files of cluster/, and the linter's opinion of a changed copy."""

from pathlib import Path

import yaml

from cromss.cluster_check import findings
from cromss.clusterfiles.reading import Finding

CLUSTER = Path(__file__).parents[2] / "cluster"
KINDS = (".yaml", ".json", ".sh", ".service")
FILES = sorted(
    str(path.relative_to(CLUSTER))
    for path in CLUSTER.rglob("*")
    if path.suffix in KINDS or path.name.startswith("Dockerfile")
)


def read(name: str) -> dict:
    """The one document of a shipped YAML or JSON file."""
    return yaml.safe_load((CLUSTER / name).read_text())


def manifests(name: str) -> list[dict]:
    return [one for one in yaml.safe_load_all((CLUSTER / name).read_text()) if one]


def found(folder: Path, name: str, old: str = "", new: str = "") -> tuple[list[Finding], int]:
    """What the linter says of a shipped file in which `old`, which must be in it, is `new`; and the line of the change.
    Placeholders do not count."""
    text = (CLUSTER / name).read_text()
    assert old in text, f"{name} no longer says {old!r}"
    copy = folder / Path(name).name
    copy.write_text(text.replace(old, new, 1) if old else text)
    line = text[: text.index(old)].count("\n") + 1 if old else 0
    return [one for one in findings(copy) if not one.fill_in], line
