"""Should Sentinel-1, the weak modality, be heard less, and Sentinel-2 more, when labels are weighed and predictions drawn?

    python -m cromss.sweep teacher_trust --data STORE --downstream STORE --out DIR

objective.enhancement.trust: the exponent of each teacher in eq. 2; (1, 1) is the paper, s1 = 0 leaves Sentinel-2 to itself,
s2 = 2 lets its doubt temper Sentinel-1 twice. objective.consistency.teachers.s1: how hard Sentinel-2 is drawn to Sentinel-1's
predictions; 1 is the paper, 0 lets the weak one only learn.
Cost: 12 x seeds pretrainings.
Answer: not asked yet. In a prototype no consistency beat lambda = 1 on Sentinel-2 (.562 against .546, two seeds).
"""

from cromss.trials.space import grid


def space() -> dict:
    return {
        "objective": {
            "enhancement": {"kind": "trust", "trust": {"s1": grid(0.0, 1.0), "s2": grid(1.0, 2.0)}},
            "consistency": {"teachers": {"s1": grid(0.0, 0.2, 1.0)}},
        }
    }
