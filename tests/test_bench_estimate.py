"""`bench estimate`: what was expected beside what it took."""

import argparse

import pytest

from cromss.benchmarks import estimate as bench
from cromss.costs.estimate import Estimate, Row


def expected(**seconds):
    rows = tuple(Row(name, 1, each, each, "measured", 0.0, None, "") for name, each in seconds.items())
    return Estimate("run", "toy", "core-hours", 0.0, 0.0, None, "measured", "", rows)


def options(*words):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


def test_every_part_stands_beside_what_it_took():
    start = "start: processes, Ray, MLflow"
    made = expected(**{start: 10.0, "pretraining": 45.0, "downstream runs": 6.0, "run": 61.0})
    parts = bench.compare(made, 50.0, 5.0, 75.0)
    assert [(part.name, part.estimated, part.measured) for part in parts] == [
        ("pretraining", 45.0, 50.0),
        ("downstream runs", 6.0, 5.0),
        (start, 10.0, 20.0),  # what is neither the one nor the other
        ("run", 61.0, 75.0),
    ]
    assert [round(part.ratio, 2) for part in parts] == [0.9, 1.2, 0.5, 0.81]
    assert "pretraining" in bench.table(parts)
    assert "0.90" in bench.table(parts)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--data", "x"), "--data and --downstream go together"),
        (("--preset", "demos"), "did you mean 'demo'?"),
        (("--seconds", "0"), "--seconds=0: must be above 0"),
        (("--set", "optim.lr=-1"), "optim.lr=-1"),
    ],
)
def test_mistakes_are_found_before_anything_runs(words, line):
    with pytest.raises(ValueError, match=line.replace("?", r"\?")):
        bench.run(options(*words))
