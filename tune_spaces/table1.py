"""Table 1 of the paper: which pretraining gives the best encoders for DFC2020?

    python -m cromss.sweep table1 --data STORE --downstream STORE --out DIR [--preset authors-code]

The baselines differ from CromSS in selection alone. MoCo and DINO are pretrained here, on the same patches, with the same
encoders, batch and steps (they need `pip install 'cromss[ssl]'`); where CROMSS_MOCO_S1, CROMSS_MOCO_S2, CROMSS_DINO_S1,
CROMSS_DINO_S2 name checkpoints, these are judged instead.
Cost: 8 x seeds pretrainings. On the whole data a supervised one takes about 52 A100-hours at the paper's speed. With the preset
`demo` on the synthetic Earth, MoCo takes about as long as midF, DINO with its eight small crops three times as long.
Answer: not run on the whole data yet. On the synthetic Earth (preset demo, 3 seeds x 1 repeat, 20 minutes on two cores) the
seeds tell pretraining with labels from random, and CromSS-midF from midF in no column (README).
"""

from cromss.trials.space import grid


def space() -> dict:
    rows = ("random", "MoCo", "DINO", "single-s1", "single-s2", "midF", "lateF", "CromSS-midF", "CromSS-lateF")
    return {"arm": grid(*rows)}
