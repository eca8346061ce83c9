"""Against which kinds of label noise does cross-modal sample selection help?

    python -m cromss.sweep noise_kind --out DIR [--set sweep.seeds=5]

About .4 of the labels are wrong, each time in another way: at random in patches, systematically between two classes, as
Dynamic World errs, by displaced borders, by objects that are missing, by labels of another state of the land, or by another
model's reading of Sentinel-2 (about a third, the known failure case). Every seed is a world of its own, shared by all arms
and kinds. Cost: 7 kinds x 4 arms x seeds pretrainings; with the preset `demo` about a minute each on a core.
Answer: not asked whole yet.
"""

from cromss.trials.answers import Compare
from cromss.trials.space import grid

KINDS = (
    {"kind": "symmetric", "region": 8, "rate": 0.4},
    {"kind": "class_confusion", "rate": 0.4},
    {"kind": "dynamic_world", "rate": 0.4},
    {"kind": "border_displacement", "rate": 0.4},
    {"kind": "missing_objects", "rate": 0.4},
    {"kind": "season_swap", "rate": 0.4},
    {"kind": "model"},
)
WORLD = {"seed": "trial", "places": 384, "seasons": 2, "test": 128}
ANSWER = Compare("CromSS-midF", "midF")


def space() -> dict:
    return {"arm": grid("midF", "CromSS-midF", "GCE-midF", "Co-teaching-midF"), "world": {"noise": grid(*KINDS)}}
