"""Which selection schedule and which fusion give the best encoders: alpha x gamma ramp x fusion?

    python -m cromss.sweep --data STORE --downstream STORE --out DIR
    ray job submit -- python -m cromss.sweep          (with CROMSS_DATA, CROMSS_DOWNSTREAM, CROMSS_OUT; else synthetic Earth)

Cost: 8 configurations x seeds pretrainings. On the synthetic Earth with the preset `demo`: minutes on two cores.
Answer: not asked on real data yet.
"""

from cromss.trials.space import grid


def space() -> dict:
    return {
        "model": {"fusion": {"kind": grid("middle", "late")}},
        "objective": {
            "alpha": {"end": grid(0.3, 0.5)},
            "gamma": {"ramp": {"kind": grid("exponential", "linear")}},
        },
    }
