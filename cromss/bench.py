"""`python -m cromss.bench stream`, `plan` and `step`: how fast patches arrive, and how fast they are learned from."""

import argparse
import sys

from cromss.benchmarks import plan, step, stream
from cromss.cli import verb


@verb
def main(argv: list[str] | None = None) -> int:
    """Dispatch to the measurement; its exit status."""
    parser = argparse.ArgumentParser(prog="cromss bench", description=__doc__)
    measurements = parser.add_subparsers(dest="measurement", required=True)
    stream.add_arguments(
        measurements.add_parser("stream", help="patches/s of bare pyarrow, the direct and the Ray reader")
    )
    plan.add_arguments(
        measurements.add_parser("plan", help="memory and time of the order of a run, 100 million patches by default")
    )
    step.add_arguments(measurements.add_parser("step", help="time and memory of a training step, part by part"))
    options = parser.parse_args(argv)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
