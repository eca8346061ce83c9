"""`python -m cromss.demo [--out DIR]`: from a synthetic Earth to a ranked table, on two cores, in minutes.

Seven arms are pretrained on Dynamic-World-like noisy labels and judged, frozen, on a shifted downstream set. The world
is invented and the network tiny: this shows that the machine works and what the weights see, not what the method is
worth on real data.
"""

import argparse
import logging
import sys
import time
from typing import Any

from cromss.cli import verb
from cromss.config import PRESETS, add_arguments, layers_from, overlay, resolve, shown
from cromss.data.synthetic import SyntheticEarth
from cromss.ray_session import connect, writable
from cromss.sweep import sweep, tell
from cromss.trials.space import Space, grid

ARMS = ("random", "single-s1", "single-s2", "midF", "oracle-midF", "CromSS-midF", "CromSS-lateF")
EARTH = SyntheticEarth(places=320, train=64, test=128)
SPACE = Space(
    name="demo",
    question="Does cross-modal sample selection give better encoders than the same networks without it?",
    base={},
    params={"arm": grid(*ARMS)},
    search="",
    samples=1,
)


@verb
def main(argv: list[str] | None = None) -> int:
    """The verb."""
    parser = argparse.ArgumentParser(prog="cromss demo", description=__doc__.splitlines()[0].split(": ", 1)[1])
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="default: runs/demo; run again, it goes on")
    add_arguments(parser)
    args = parser.parse_args(argv)
    layers = overlay(PRESETS["demo"], layers_from(args))
    config = resolve(layers)
    if args.print_config:
        print(shown(config), end="")
        return 0
    out = writable(args.out)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    began = time.monotonic()
    from cromss.trials.worlds import synthetic_stores

    print("synthetic Earth: pretraining locations with noisy labels, and a downstream region elsewhere ...", flush=True)
    data, downstream = synthetic_stores(out / "synthetic", EARTH)
    connect()
    outcome = sweep(SPACE, layers, data, downstream, out, resume=(out / "sweep.json").exists())
    print(detection(outcome["trials"]))
    status = tell(outcome, out)
    print(f"the whole demo took {(time.monotonic() - began) / 60:.1f} minutes")
    return status


def detection(trials: list[dict[str, Any]]) -> str:
    """How well each arm's confidence tells wrong labels from right ones, where it was measured."""
    lines = ["\nDo the weights find the wrong labels? AUROC, mean over seeds (0.5 = chance)"]
    measured: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        if trial["noise"]:
            measured.setdefault(trial["arm"], []).append(trial["noise"])
    lines.append(f"{'':<14}{'modality':<10}{'own F':>8}{'enhanced F′':>13}{'weights W':>11}")
    for name, noises in sorted(measured.items()):
        for modality in sorted({m for noise in noises for m, one in noise.items() if isinstance(one, dict)}):
            if found := [noise[modality] for noise in noises if modality in noise]:
                own, enhanced, weights = (
                    sum(one[f"auroc_{kind}"] for one in found) / len(found) for kind in ("F", "F_enhanced", "W")
                )
                lines.append(f"{name:<14}{modality:<10}{own:>8.3f}{enhanced:>13.3f}{weights:>11.3f}")
    rates = [noise["rate"] for noises in measured.values() for noise in noises]
    if rates:
        lines.append(f"{100 * sum(rates) / len(rates):.1f} % of the labels are wrong; the report shows where")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
