"""Which pixels should share a threshold: a batch (the paper), an image, or all workers' batches, one per class?

    python -m cromss.sweep scope --data STORE --downstream STORE --out DIR

objective.per_class is the authors' code. `global` differs from `batch` only where several workers train (scaling.num_workers).
Cost: 6 x seeds pretrainings.
Answer: not asked yet. In a prototype, per class looked safer under structured or heavy noise, and against midF won nothing.
"""

from cromss.trials.answers import Compare
from cromss.trials.space import grid

ANSWER = Compare(True, False, parameter="objective.per_class")


def space() -> dict:
    return {"objective": {"scope": grid("batch", "image", "global"), "per_class": grid(False, True)}}
