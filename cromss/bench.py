"""How fast everything is: the step, the stream, the plan, sweeps, growth, maps, the estimate; `all` of them in one go."""

import argparse
import sys

from cromss.benchmarks import estimate, everything, plan, predict, scaling, step, stream, sweep
from cromss.cli import verb

MEASUREMENTS = {
    "step": (step, "a training step beside the authors' recipe: time, memory, traffic, part by part"),
    "stream": (stream, "patches/s of bare pyarrow, the direct and the Ray reader"),
    "plan": (plan, "memory and time of the order of a run, 100 million patches by default"),
    "sweep": (sweep, "what a sweep costs beyond its trials: overhead, memory, idle devices"),
    "scaling": (scaling, "how a step's cost grows with batch, size, classes, modalities and workers"),
    "predict": (predict, "a Sentinel-2 tile of serving size to a map: rate and memory"),
    "estimate": (estimate, "an estimate beside the run that it foretold"),
    "all": (everything, "every measurement, small: a JSON, a PNG and a line of each"),
}


@verb
def main(argv: list[str] | None = None) -> int:
    """Dispatch to the measurement; its exit status."""
    parser = argparse.ArgumentParser(prog="cromss bench", description=__doc__)
    measurements = parser.add_subparsers(dest="measurement", required=True)
    for name, (module, title) in MEASUREMENTS.items():
        module.add_arguments(measurements.add_parser(name, help=title, description=module.__doc__))
    options = parser.parse_args(argv)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
