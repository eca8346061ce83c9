"""How fast a scene of serving size becomes a map, and how much memory that takes: a generated Sentinel-2 tile through
`python -m cromss.predict`, in a process of its own whose memory, children included, is watched."""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import rasterio
from matplotlib.figure import Figure
from rasterio.windows import Window

from cromss.data.synthetic import SyntheticEarth
from cromss.plot.look import RIGHT, styled

TILE = 10_980  # pixels a side of a Sentinel-2 tile of 10 m
_GIB = 2**30
_LOOKS = 0.25  # seconds between two: a look at every process takes milliseconds of the cores that are measured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench predict`."""
    parser.add_argument("--size", type=int, default=TILE, help="pixels a side of the scene (default: %(default)s)")
    parser.add_argument(
        "--model", type=Path, help="a pretraining's --out (default: the network of --encoder, untrained)"
    )
    parser.add_argument("--encoder", default="resnet50", help="of the untrained network (default: %(default)s)")
    parser.add_argument("--radar", action="store_true", help="Sentinel-1 beside it, on a grid of its own")
    parser.add_argument(
        "--folder", type=Path, help="where scene and map are written and stay (default: a temporary one)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw memory over time there")
    parser.add_argument("options", nargs="*", help="passed on to cromss.predict, after --: -- --workers 2 --overlap 32")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Generate, predict, print."""
    with tempfile.TemporaryDirectory(dir=options.folder and options.folder.parent) as aside:
        folder = options.folder or Path(aside)
        folder.mkdir(parents=True, exist_ok=True)
        model = options.model or untrained(folder / "model", options.encoder)
        scene = {"--s2": generated(folder / "s2.tif", options.size, "s2")}
        if options.radar:
            scene["--s1"] = generated(folder / "s1.tif", options.size, "s1")
        command = [sys.executable, "-m", "cromss.predict", "--model", str(model), "--out", str(folder / "map.tif"),
                   "--overwrite", *[str(word) for pair in scene.items() for word in pair], *options.options]  # fmt: skip
        print(" ".join(command[1:]), flush=True)
        seconds, memory, status = watched(command)
        if status:
            return status
        with rasterio.open(folder / "map.tif") as file:
            assert file.shape == (options.size, options.size)
        bytes_in = sum(path.stat().st_size for path in scene.values())
    pixels, peak = options.size**2, max(gib for _, gib in memory)
    rate = f"{pixels / seconds / 1e6:.2f} Mpixel/s"
    headline = f"{options.size:,} x {options.size:,} in {seconds:,.0f} s: {rate}, at most {peak:.2f} GiB"
    print(f"{headline} (all processes; the scene is {bytes_in / _GIB:.2f} GiB on disk)")
    if options.json:
        numbers = {
            "headline": headline, "size": options.size, "seconds": seconds, "pixels_per_s": pixels / seconds,
            "peak_gib": peak, "command": command[1:], "cores": psutil.cpu_count(),
        }  # fmt: skip
        options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    if options.png:
        _draw(memory, headline).savefig(options.png, dpi=130)
    return 0


def untrained(folder: Path, encoder: str) -> Path:
    """A run's folder with the paper's network on Sentinel-1 and -2, all bands, at its random start."""
    from cromss.config import resolve
    from cromss.contract import Contract
    from cromss.landcover import DYNAMIC_WORLD
    from cromss.sensors import SENSORS
    from cromss.training import segmenter_file

    model = resolve({"model": {"encoder": encoder}}).model
    bands = {name: SENSORS[name].bands for name in model.fusion.modalities}
    card = segmenter_file.SegmenterCard(
        model=model, bands=bands, scaling=model.scaling, scheme=DYNAMIC_WORLD.name,
        contracts={name: Contract.of(name, own, "uint8") for name, own in bands.items()},
    )  # fmt: skip
    network = model.fusion.build(model, {name: len(own) for name, own in bands.items()}, len(DYNAMIC_WORLD))
    segmenter_file.save(folder, network, card)
    return folder


def generated(path: Path, size: int, modality: str) -> Path:
    """A scene of the synthetic Earth: one of its places, mirrored until it fills the tile; written block by block."""
    from cromss.sensors import sensor

    side = min(1024, size)
    earth = SyntheticEarth(places=1, size=side, seasons=1)
    patch = next(iter(earth.read(earth.locations()[0])))
    own = patch.images[modality]
    dtype = np.uint16 if modality == "s2" else np.float32
    own = np.pad(own.astype(dtype), ((0, 0), (0, side), (0, side)), mode="symmetric")
    with rasterio.open(
        path, "w", driver="GTiff", height=size, width=size, count=len(own), dtype=np.dtype(dtype).name, tiled=True,
        blockxsize=512, blockysize=512, compress="deflate", zlevel=1, interleave="band", crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 399_960 + 3.0 * (modality == "s1"), 0, -10, 5_200_020), bigtiff="if_safer",
    ) as file:  # fmt: skip
        file.descriptions = sensor(modality).bands
        for top in range(0, size, 512):
            for left in range(0, size, 512):
                height, width = min(512, size - top), min(512, size - left)
                row, column = top % (2 * side), left % (2 * side)
                block = own.take(range(row, row + height), 1, mode="wrap").take(
                    range(column, column + width), 2, mode="wrap"
                )
                file.write(block, window=Window(left, top, width, height))
    return path


def watched(command: list[str]) -> tuple[float, list[tuple[float, float]], int]:
    """(seconds, (seconds, GiB resident of the process and its children) over time, exit status)."""
    began, looks = time.monotonic(), [(0.0, 0.0)]
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            resident = 0
            for one in _family(process.pid):
                with contextlib.suppress(psutil.Error):  # it has just ended
                    resident += one.memory_info().rss
            looks.append((time.monotonic() - began, resident / _GIB))
            time.sleep(_LOOKS)
    return time.monotonic() - began, looks, process.returncode


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


@styled
def _draw(memory: list[tuple[float, float]], title: str) -> Figure:
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*memory, strict=True), color=RIGHT)
    axes.set(title=title, xlabel="seconds", ylabel="resident memory, GiB", ylim=(0, None), xlim=(0, None))
    axes.grid(axis="y")
    return figure
