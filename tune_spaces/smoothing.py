"""Does spatio-temporal label smoothing (the journal version) give better encoders, with and without sample selection?

    python -m cromss.sweep smoothing --data STORE --downstream STORE --out DIR

Labels drawn to their neighbours in space and season, by the authors' a = .15, b = .05, sigma 3 pixels. The store needs several
seasons of a place. Cost: 4 x seeds pretrainings.
Answer: not asked yet.
"""

from cromss.trials.answers import Compare
from cromss.trials.space import grid

ANSWER = Compare("spatio_temporal", "none", parameter="objective.smoothing.kind")


def space() -> dict:
    return {
        "arm": grid("midF", "CromSS-midF"),
        "objective": {"smoothing": {"kind": grid("none", "spatio_temporal")}},
    }
