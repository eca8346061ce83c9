"""`python -m cromss.audit --model RUN --data STORE --out DIR`: the labels that are wrong, and what to
put in their place.

    python -m cromss.audit --model runs/one --data STORE --out audits/one
    python -m cromss.audit --model runs/one --data STORE --reference OTHER_LABELS --out audits/one

A pretrained network looks at every labelled pixel; the labels that it trusts least are flagged, and where it is sure of
another class that is suggested. DIR gets a GeoTIFF with a STAC item for every patch, rankings of tiles and classes, pictures,
a page and audit.json. The same command again goes on where a stopped one was.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cromss.cli import verb


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """0 done; 2 a model, store or folder that does not fit; 130 stopped."""
    args = _parser().parse_args(argv)
    from cromss.torchvision_cpu import make_importable

    make_importable()
    import torch

    from cromss.auditing.network import Auditor
    from cromss.auditing.page import summary
    from cromss.auditing.run import audit
    from cromss.auditing.settings import AuditConfig
    from cromss.data.store import PatchStore
    from cromss.settings import validate

    if args.threads:
        torch.set_num_threads(args.threads)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    store = PatchStore.open(args.data)
    objective = Auditor.open(args.model, store, args.modalities or ()).objective
    alpha = objective.alpha.end if args.alpha is None else args.alpha
    config = validate(AuditConfig, {
        "flagged": args.flagged, "alpha": alpha, "per_class": objective.per_class, "confident": args.confident,
        "seasons": args.seasons, "splits": tuple(args.split or ()), "modalities": tuple(args.modalities or ()),
        "limit": args.limit, "maps": args.maps,
    })  # fmt: skip
    reference = PatchStore.open(args.reference) if args.reference else None
    found = audit(
        args.model, store, args.out, config, reference=reference, cleanlab=args.cleanlab, device=device,
        batch_size=args.batch_size, say=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    print(summary(found))
    print(f"page         {args.out / 'audit.html'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cromss audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", metavar="RUN", required=True, type=Path,
                        help="the --out of a pretraining with labels, or the segmenter.safetensors in it")  # fmt: skip
    parser.add_argument("--data", metavar="STORE", required=True, help="the patch store whose labels are audited")
    parser.add_argument(
        "--out", metavar="DIR", required=True, type=Path, help="a new folder, or the one of the same audit"
    )
    parser.add_argument(
        "--reference", metavar="STORE", help="independent labels of the same tiles, to score the audit by"
    )
    parser.add_argument("--flagged", metavar="X", type=float, default=0.05,
                        help="share of the labelled pixels to flag, the most suspicious (default 0.05)")  # fmt: skip
    parser.add_argument("--confident", metavar="P", type=float, default=0.7,
                        help="mean probability from which on a class is suggested (default 0.7)")  # fmt: skip
    parser.add_argument("--alpha", metavar="X", type=float,
                        help="share of the labels with weight 1 (eq. 3; default: the run's objective.alpha.end)")  # fmt: skip
    parser.add_argument(
        "--split", metavar="NAME", action="append", help="audit this split only (repeatable; default: all)"
    )
    parser.add_argument("--seasons", choices=("all", "one"), default="all",
                        help="every acquisition of a place, or one: labels differ between them (default all)")  # fmt: skip
    parser.add_argument("--modalities", metavar="A,B", type=lambda text: text.split(","),
                        help="let the network look at these only (default: all that it knows)")  # fmt: skip
    parser.add_argument(
        "--limit", metavar="N", type=int, help="so many patches, from all over the store (default: all)"
    )
    parser.add_argument("--maps", action=argparse.BooleanOptionalAction, default=True,
                        help="a GeoTIFF and a STAC item for every patch (default), or tables and pictures only")  # fmt: skip
    parser.add_argument("--cleanlab", action=argparse.BooleanOptionalAction, default=None,
                        help="compare with cleanlab's segmentation scores, on as many pixels as it can hold (default: "
                        "where cromss[audit] is installed)")  # fmt: skip
    parser.add_argument(
        "--batch-size", metavar="N", type=int, default=8, help="patches the network sees at a time (default 8)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: torch's)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
