"""Does it matter how the teachers' confidence is ramped in (gamma)?

    python -m cromss.sweep gamma_ramp --data STORE --downstream STORE --out DIR

Constant 0 is an unweighted consistency loss. Cost: 5 x seeds pretrainings.
Answer: not asked on real data yet.
"""

from cromss.trials.space import grid


def space() -> dict:
    ramps = [{"kind": kind} for kind in ("exponential", "anchored", "linear", "step")]
    return {"objective": {"gamma": {"ramp": grid(*ramps, {"kind": "constant", "value": 0.0})}}}
