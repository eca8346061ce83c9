"""Which fusion: middle (shared decoder) or late (nothing shared), with and without cross-modal sample selection?

    python -m cromss.sweep fusion --data STORE --downstream STORE --out DIR

Cost: 4 x seeds pretrainings, and the random baseline.
Answer: not asked on DFC2020 yet.
"""

from cromss.trials.space import grid


def space() -> dict:
    return {"arm": grid("random", "midF", "lateF", "CromSS-midF", "CromSS-lateF")}
