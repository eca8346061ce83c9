"""`cromss <verb>` and `python -m cromss <verb>`: one door to every verb."""

import importlib
import sys

from cromss.settings import suggest

VERBS = {
    "ingest": "tiles into a patch store; describe and verify one",
    "pretrain": "pretrain the encoders on noisy labels",
    "transfer": "judge encoders on a downstream task",
    "export": "encoders for other libraries; other people's checkpoints",
    "predict": "land-cover maps of whole scenes, for a GIS",
    "audit": "which labels of a data set are wrong, as maps and rankings",
    "sweep": "many pretrainings, judged and ranked",
    "estimate": "what a run or a sweep will cost, before it starts",
    "report": "one HTML page over a run directory",
    "bench": "measure the step, the stream, sweeps and their growth",
    "demo": "synthetic Earth to ranked table in minutes",
    "cluster_check": "what a file that starts a cluster should not say",
    "spot_watch": "beside a node: a cloud's notice drains it in time",
}


def main(argv: list[str] | None = None) -> int:
    """Dispatch to `cromss.<verb>.main`; the verb's exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        print("usage: cromss <verb> [...]\n")
        print("\n".join(f"  {verb:<{width}}  {story}" for verb, story in VERBS.items()))
        print("\n`cromss <verb> --help` says more.")
        return 0
    if argv[0] not in VERBS:
        print(f"cromss {argv[0]}: unknown verb{suggest(argv[0], VERBS)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"cromss.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
