"""Table 1 of the paper: which pretraining gives the best encoders for DFC2020?

    python -m cromss.sweep table1 --data STORE --downstream STORE --out DIR [--preset authors-code]

The baselines differ from CromSS in selection alone. MoCo and DINO join where CROMSS_MOCO_S1, CROMSS_MOCO_S2, CROMSS_DINO_S1,
CROMSS_DINO_S2 name their checkpoints. Cost: 6 x seeds pretrainings of about 52 A100-hours each at the paper's speed.
Answer: not run on the whole data yet.
"""

from cromss.trials.arms import imported
from cromss.trials.space import grid


def space() -> dict:
    rows = ("random", "single-s1", "single-s2", "midF", "lateF", "CromSS-midF", "CromSS-lateF")
    return {"arm": grid(*rows, *imported())}
