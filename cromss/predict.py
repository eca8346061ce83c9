"""`python -m cromss.predict --model RUN --s1 A.tif --s2 B.tif --out map.tif`: land-cover maps that open in a GIS.

Scenes of any size, by windows that overlap and are blended; either modality or both. An interrupted map goes on from its
finished tiles; it takes its name when it is whole.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cromss.cli import verb
from cromss.data.progress import clock

if TYPE_CHECKING:
    from cromss.maps.job import Job, Result
    from cromss.maps.windows import Box

TILE = 3072  # pixels a side of a unit of work; its probabilities, not the scene, are what memory holds


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Make the maps and print what they show. Mistakes end with status 2."""
    args = _parser().parse_args(argv)
    if not args.s1 and not args.s2:
        raise ValueError("--s1, --s2: give a scene, of one modality or of both")
    pairs = _pairs(args)
    from cromss.maps.model import file_of

    model_file = file_of(args.model).absolute()  # as the workers know it: a process loads it once
    jobs = [_job(args, files, out, model_file) for files, out in pairs]
    when = _date(args.date)
    waiting = []
    for job in jobs:
        if job.finished() and not args.overwrite:
            print(f"{job.out}: there already, made of these very inputs")
            continue
        if told := job.begin(args.overwrite):
            print(told)
        waiting.append(job)
    _compute(waiting, args.workers, args.threads)
    from cromss.maps.job import assemble

    for job in waiting:
        result = assemble(job, job.out.stem, when)
        _say(job, result)
    return 0


# fmt: off
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cromss predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, metavar="RUN", type=Path, help="a pretraining's --out, or its segmenter.safetensors")
    add("--s1", nargs="+", type=Path, default=[], metavar="TIF",
        help="Sentinel-1 scene(s), VV and VH in dB, on any grid and in any CRS")
    add("--s2", nargs="+", type=Path, default=[], metavar="TIF",
        help="Sentinel-2 scene(s), all bands in one file; the map has their grid")
    add("--out", required=True, type=Path, metavar="MAP",
        help="the map; for several scenes a folder, with a map for each --s2 (else --s1)")
    add("--window", type=int, default=256, help="pixels a side that the network sees at once (256, the paper's crop)")
    add("--overlap", type=int, default=64, help="pixels that neighbouring windows share and are blended over (64)")
    add("--tile", type=int, default=TILE, help=f"pixels a side of a unit of work, a multiple of 512 ({TILE})")
    add("--batch", type=int, default=8, help="windows at a time (8)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU where there is one")
    add("--workers", type=int, default=0, metavar="N",
        help="so many Ray tasks at a time, over the tiles of all scenes, on this machine or on the cluster of RAY_ADDRESS, "
        "whose nodes must see the scenes and --out (0: this process)")
    add("--threads", type=int, default=None, help="CPU threads of each (default: the cores, shared by the workers)")
    add("--date", metavar="YYYY-MM-DD", help="of the scene, for the STAC item (default: from file names and tags)")
    add("--offset", choices=("auto", "0", "1000"), default="auto",
        help="DN to subtract from Sentinel-2, where neither B10 nor the processing baseline tell")
    add("--s1-order", default="", metavar="VV,VH", help="bands of --s1, where the file does not name them")
    add("--s2-order", default="", metavar="B2,B3,...", help="bands of --s2, where the file does not name them")
    add("--s1-unit", choices=("auto", "dB", "linear"), default="auto",
        help="linear: backscatter as power, turned into dB")
    add("--any-product", action="store_true", help="map another processing level than the network was trained on")
    add("--overwrite", action="store_true", help="replace a map of that name")
    return parser
# fmt: on


def _pairs(args: argparse.Namespace) -> list[tuple[dict[str, Path], Path]]:
    """(modality -> file, the map's path) of every scene."""
    if args.s1 and args.s2 and len(args.s1) != len(args.s2):
        raise ValueError(f"--s1 names {len(args.s1)} scenes, --s2 {len(args.s2)}: they belong together in order")
    count = max(len(args.s1), len(args.s2))
    given = [{name: files[i] for name, files in (("s1", args.s1), ("s2", args.s2)) if files} for i in range(count)]
    if count == 1 and not args.out.is_dir():
        if args.out.suffix.lower() not in (".tif", ".tiff"):
            raise ValueError(f"--out {args.out}: a map is a .tif; for a folder of maps, give one that exists")
        return [(given[0], args.out)]
    leading = [files.get("s2", files.get("s1")) for files in given]
    names = [f"{path.stem}-map.tif" for path in leading]
    if twice := {name for name in names if names.count(name) > 1}:
        names = [
            f"{path.parent.name}-{name}" if name in twice else name for path, name in zip(leading, names, strict=True)
        ]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--out {args.out}: two scenes would make {twice[0]}; map them one by one")
    args.out.mkdir(parents=True, exist_ok=True)
    return [(files, args.out / name) for files, name in zip(given, names, strict=True)]


def _job(args: argparse.Namespace, files: dict[str, Path], out: Path, model_file: Path) -> "Job":
    import torch

    from cromss.maps.job import Job
    from cromss.maps.scene import Reading, survey
    from cromss.maps.windows import Windows

    if args.tile < 512 or args.tile % 512:
        raise ValueError(f"--tile {args.tile}: must be a multiple of 512, the blocks of the map")
    if args.batch < 1:
        raise ValueError(f"--batch {args.batch}: must be 1 or more")
    reading = Reading(
        s1_order=args.s1_order, s2_order=args.s2_order, s1_unit=args.s1_unit, offset=args.offset,
        any_product=args.any_product,
    )  # fmt: skip
    model = _opened(model_file)
    resolved = {name: path.absolute() for name, path in files.items()}
    if out.absolute() in resolved.values():
        raise ValueError(f"--out {out}: is one of the scenes")
    scene = survey(resolved, model, reading)
    windows = Windows.on(scene.grid.size, scene.grid.transform, args.window, args.overlap)
    stride = max(model.network.encoder(part.modality).output_stride for part in scene.parts)
    if args.window % stride:
        raise ValueError(f"--window {args.window}: must be a multiple of {stride}, the stride of the encoder")
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    height, width = scene.grid.size
    parts, said = " and ".join(part.modality for part in scene.parts), "; ".join(scene.notes)
    print(f"{out}: {height:,} x {width:,} pixels from {parts}{said and f' ({said})'}")
    return Job(scene, windows, model_file, out.absolute(), args.tile, args.batch, device)


def _opened(path: Path):
    from cromss.maps.job import opened_model

    return opened_model(path, "cpu")


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"--date {text}: expected YYYY-MM-DD, or with a time YYYY-MM-DDTHH:MM:SS") from None


def _compute(jobs: Sequence["Job"], workers: int, threads: int | None) -> None:
    """All missing tiles, here or by Ray, with a line about how far it has come."""
    todo = [(job, tile) for job in jobs for tile in job.missing()]
    had = sum(len(job.tiles) for job in jobs) - len(todo)
    if had:
        print(f"{had} of {had + len(todo)} tiles are there from before")
    pixels = sum(tile.size[0] * tile.size[1] for _, tile in todo)
    began, done, last = time.monotonic(), 0, 0.0
    for number, tile in enumerate(_here(todo, threads) if workers < 1 else _by_ray(todo, workers, threads), start=1):
        done += tile.size[0] * tile.size[1]
        now = time.monotonic() - began
        if now - last >= 5 or number == len(todo):
            last, rate = now, done / now
            print(
                f"{number + had}/{len(todo) + had} tiles, {rate / 1e6:.2f} Mpixel/s, ETA {clock((pixels - done) / rate)}",
                flush=True,
            )


def _here(todo: Sequence[tuple["Job", "Box"]], threads: int | None) -> Iterator["Box"]:
    import torch

    from cromss.maps.job import compute

    if threads:
        torch.set_num_threads(threads)
    for job, tile in todo:
        compute(job, tile)
        yield tile


def _by_ray(todo: Sequence[tuple["Job", "Box"]], workers: int, threads: int | None) -> Iterator["Box"]:
    import ray

    from cromss.data.tasks import own_words
    from cromss.ray_session import capacity, connect

    connect()
    there = capacity()
    gpu = todo and todo[0][0].device == "cuda"
    own = (
        {"num_gpus": min(1.0, there.get("GPU", 0) / workers)} if gpu else {"num_cpus": min(1.0, there["CPU"] / workers)}
    )
    cores = threads or max(1, int(there["CPU"] / workers))

    @ray.remote(max_retries=3, **own)
    def one(job: "Job", tile: "Box") -> "Box":
        import torch

        from cromss.maps.job import compute

        torch.set_num_threads(cores)
        compute(job, tile)
        return tile

    waiting, queue = [], iter(todo)
    with own_words():
        while True:
            while len(waiting) < workers and (task := next(queue, None)):
                waiting.append(one.remote(*task))
            if not waiting:
                return
            ready, waiting = ray.wait(waiting)
            yield ray.get(ready[0])


def _say(job: "Job", result: "Result") -> None:
    scheme = _opened(job.model).scheme
    data = int(result.counts.sum())
    print(f"\n{job.out}")
    for number in sorted(range(len(scheme)), key=lambda number: -result.counts[number]):
        if count := int(result.counts[number]):
            area = f"{count * result.pixel_km2:12,.2f} km²" if result.pixel_km2 else ""
            print(f"  {scheme.classes[number]:<{max(map(len, scheme.classes))}}  {count / data:6.1%}{area}")
    print(f"  no data {result.nodata / (data + result.nodata):.1%}, mean uncertainty {result.uncertainty:.0f} %")
    beside = f"{job.out.with_suffix('.png').name}, {job.out.with_suffix('.json').name} (STAC)"
    print(f"  beside it: {beside}, {job.out.name}.aux.xml")
    if peak := _most_memory():
        print(f"  memory at most {peak:.2f} GiB in this process")


def _most_memory() -> float | None:
    """GiB; None where the system has no /proc. (What getrusage says began with the memory of whoever started this process.)"""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) / 2**20 if found else None


if __name__ == "__main__":
    sys.exit(main())
