"""How much should the modalities be drawn to agree (lambda of the consistency loss), with and without sample selection?

    python -m cromss.sweep consistency --data STORE --downstream STORE --out DIR

1 is the paper, 0 leaves the modalities of midF nothing in common but the decoder. Cost: 8 x seeds pretrainings.
Answer: not asked yet. In a prototype 0 beat 1 on Sentinel-2 (.562 against .546 frozen, midF, two seeds).
"""

from cromss.trials.answers import Trend
from cromss.trials.space import grid

ANSWER = Trend("objective.consistency.weight")


def space() -> dict:
    return {
        "arm": grid("midF", "CromSS-midF"),
        "objective": {"consistency": {"weight": grid(0.0, 0.1, 0.5, 1.0)}},
    }
