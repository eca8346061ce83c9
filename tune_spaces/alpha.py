"""How much of the noisy labels should count fully in the end (alpha_end)?

    python -m cromss.sweep alpha --data STORE --downstream STORE --out DIR

1.0 is no selection of labels at all: the consistency weights remain. Cost: 5 x seeds pretrainings.
Answer: not asked on real data yet. On the synthetic Earth the two measures disagree: no ranking.
"""

from cromss.trials.space import grid


def space() -> dict:
    return {"objective": {"alpha": {"end": grid(0.3, 0.5, 0.7, 0.9, 1.0)}}}
