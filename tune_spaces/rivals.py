"""Which method for noisy labels gives the best encoders under the same networks, data and budget: CromSS, a rival, or none?

    python -m cromss.sweep rivals --data STORE --downstream STORE --out DIR
    python -m cromss.sweep rivals --out DIR --preset demo       (the synthetic Earth, whose noise is known)

midF is middle fusion with cross-entropy and Dice; every other arm differs from it in `objective.method` alone. The rivals'
formulas, sources and adaptations: cromss/objective/rivals.py. The selecting ones (Co-teaching, JoCoR, SmallLoss) keep the
share `objective.alpha` of the labels, on CromSS's ramp; with Han et al.'s schedule, and the noise rate tau known:
--set objective.alpha.end=1-tau --set objective.alpha.ramp.kind=linear --set objective.alpha.ramp.epochs=10, for all arms.
Cost: 9 x seeds pretrainings; ELR, which runs a second network forward, costs about a third more than the others.
Answer: not asked yet.
"""

from cromss.objective.methods import RIVALS
from cromss.trials.space import grid


def space() -> dict:
    return {"arm": grid("midF", "CromSS-midF", *(f"{rival.title}-midF" for rival in RIVALS))}
