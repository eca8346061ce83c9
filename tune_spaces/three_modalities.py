"""Does a third modality, Sentinel-1 from its other orbit, give a better Sentinel-2 encoder, with and without selection?

    python -m cromss.sweep three_modalities --out DIR [--set sweep.seeds=5]

On synthetic Earths with both orbits (`s1`, `s1d`: other speckle, slopes lit from the other side, another day's weather), one
for every seed, shared by all four configurations. With three modalities eq. 2 takes the mean of the others' confidences, and
every modality learns from both others. All encoders are judged; what ranks is Sentinel-2's, which all configurations have.
Cost: 4 x seeds pretrainings; half of them have three networks instead of two.
Answer: not asked yet.
"""

from cromss.config import PRESETS
from cromss.settings import overlay
from cromss.trials.answers import Compare
from cromss.trials.space import grid

TWO, THREE = ["s1", "s2"], ["s1", "s1d", "s2"]
BASE = overlay(PRESETS["demo"], {"transfer": {"modalities": THREE}, "sweep": {"metric": "s2", "seeds": 3}})
WORLD = {"seed": "trial", "descending": True, "places": 384, "seasons": 2, "test": 128}
ANSWER = Compare(THREE, TWO, parameter="model.fusion.modalities")


def space() -> dict:
    return {"arm": grid("midF", "CromSS-midF"), "model": {"fusion": {"modalities": grid(TWO, THREE)}}}
