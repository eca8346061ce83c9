"""Where does a guided search (Optuna, TPE on the frozen probe) take alpha, the ramps' length, lambda and the learning rate?

    python -m cromss.sweep search --data STORE --downstream STORE --out DIR --samples 24

The best three configurations are repeated with the other seeds: the search itself sees one. Cost: samples + 3 x (seeds - 1)
pretrainings. Answer: not asked on real data yet.
"""

from ray import tune

SEARCH = "optuna"
SAMPLES = 12


def space() -> dict:
    return {
        "objective": {
            "alpha": {"end": tune.uniform(0.2, 1.0)},
            "consistency": {"weight": tune.uniform(0.0, 2.0)},
        },
        "optim": {"lr": tune.loguniform(1e-4, 5e-3)},
    }
