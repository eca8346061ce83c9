"""Up to which share of wrong labels does cross-modal sample selection help, and how do rival methods fare?

    python -m cromss.sweep noise_rate --out DIR [--set sweep.seeds=5]

Labels of the synthetic Earth are wrong in patches of about 8 pixels, any other class as likely as another, anew every season.
Every seed is a world of its own, shared by all arms and rates. midF is the same pretraining without selection, oracle-midF
selects perfectly: between them lies what there is to win. CROMSS_NOISE names another kind than `symmetric`, one that takes a
rate: border_displacement (up to .4), missing_objects (.5), season_swap, class_confusion; rates it cannot reach are left out.
Cost: 5 rates x 5 arms x seeds pretrainings; with the preset `demo` about a minute each on a core.
Answer: not asked whole yet.
"""

import os

from cromss.trials.answers import Trend
from cromss.trials.space import grid

KIND = os.environ.get("CROMSS_NOISE", "symmetric")
CEILING = {"border_displacement": 0.4, "missing_objects": 0.5, "dynamic_world": 0.6}
RATES = [rate for rate in (0.0, 0.2, 0.4, 0.6, 0.8) if rate <= CEILING.get(KIND, 0.8)]
ARMS = ("midF", "CromSS-midF", "oracle-midF", "GCE-midF", "Co-teaching-midF")
WORLD = {"seed": "trial", "places": 384, "seasons": 2, "test": 128}
ANSWER = Trend("world.noise.rate", arm="CromSS-midF", against="midF")


def space() -> dict:
    noise = {"kind": KIND} | ({"region": 8} if KIND == "symmetric" else {})
    return {"arm": grid(*ARMS), "world": {"noise": noise | {"rate": grid(*RATES)}}}
