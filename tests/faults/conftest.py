"""Experiments: a fault, what is promised, what was measured. The quick ones run with every suite, all with CROMSS_FAULTS=1.

CROMSS_FAULTS_TABLE=FILE.md: where the table is written to; beside it, FILE.json keeps the records, so that an experiment that
is run again replaces its own row and no other.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import stage

from cromss.data.ingestion import Ingest, ingest
from cromss.data.synthetic import SyntheticEarth

HERE = Path(__file__).parent
RECORDS = pytest.StashKey[dict[str, dict[str, Any]]]()


def pytest_configure(config):
    config.stash[RECORDS] = {}


def pytest_collection_modifyitems(items):
    """Those that join the Ray of this test run come last: until then there is no second Ray beside those of the others."""
    here = [item for item in items if item.path.parent == HERE]
    ordered = iter(sorted(here, key=lambda item: "joined" in item.fixturenames))
    items[:] = [next(ordered) if item.path.parent == HERE else item for item in items]


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """256 training places: 32 steps an epoch."""
    path = tmp_path_factory.mktemp("faults") / "store"
    ingest(SyntheticEarth(places=288, size=32, seasons=2), path, Ingest(chunk=32, folds=9))
    return path


@pytest.fixture
def started():
    """Start processes and clusters of this experiment; none outlives it."""
    everything: list[stage.Process | stage.Cluster] = []

    def start(what):
        everything.append(what)
        return what

    yield start
    for one in reversed(everything):
        one.end()


@pytest.fixture
def joined(ray_session):
    """Environment of a command that joins the Ray of this test run; starting one of its own would take longer than the rest."""
    return {"RAY_ADDRESS": ray_session.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "disabled"}


@pytest.fixture
def experiment(request):
    """Write down what was measured, then hold it against the promise. `row`: where in the table it stands."""

    def record(row: float, fault: str, promised: str, measured: dict[str, Any], passed: bool) -> None:
        found = {"row": row, "fault": fault, "promised": promised, "measured": measured, "passed": bool(passed)}
        request.config.stash[RECORDS][fault] = found
        assert passed, found

    return record


# --- the table --------------------------------------------------------------------------------------------------------


def pytest_terminal_summary(terminalreporter, config):
    records = config.stash.get(RECORDS, {})
    if not records:
        return
    where = os.environ.get("CROMSS_FAULTS_TABLE")
    if where:
        kept = Path(where).with_suffix(".json")
        records = (json.loads(kept.read_text()) if kept.exists() else {}) | records
        kept.write_text(json.dumps(records, indent=1) + "\n")
    rows = [_row(one) for one in sorted(records.values(), key=lambda one: one["row"])]
    if where:
        Path(where).write_text(_markdown(rows))
    terminalreporter.section("faults survived")
    terminalreporter.write_line(_aligned(rows))


TITLES = ("fault", "promised", "measured")


def _row(record: dict[str, Any]) -> tuple[str, str, str]:
    measured = ", ".join(_quantity(*one) for one in record["measured"].items())
    return record["fault"], record["promised"], measured if record["passed"] else f"NOT KEPT: {measured}"


def _quantity(name: str, value: Any) -> str:
    """`("back after, s", 7.7234)` as "back after 7.7 s"."""
    words, _, unit = name.partition(", ")
    number = f"{value:.3g}" if isinstance(value, float) else str(value)
    return f"{words} {number} {unit}".strip()


def _markdown(rows: list[tuple[str, ...]]) -> str:
    lines = [TITLES, ("---",) * len(TITLES), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def _aligned(rows: list[tuple[str, ...]]) -> str:
    lines = [TITLES, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(TITLES))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
