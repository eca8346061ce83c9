"""`bench predict` maps a generated scene through the verb and watches its memory."""

import json
import sys

import numpy as np
import rasterio

from cromss.bench import main as bench
from cromss.benchmarks.predict import generated, watched


def test_a_generated_scene_becomes_a_map_and_numbers(tmp_path, capfd):
    numbers, folder = tmp_path / "numbers.json", tmp_path / "work"
    files = ["--folder", str(folder), "--json", str(numbers), "--png", str(tmp_path / "memory.png")]
    how = ["--size", "600", "--encoder", "tu-test_resnet", "--radar"]
    assert bench(["predict", *how, *files, "--", "--window", "128", "--overlap", "32"]) == 0
    said = capfd.readouterr().out
    found = json.loads(numbers.read_text())
    assert found["headline"] in said
    assert "s1 warped to the grid of s2" in said
    assert found["pixels_per_s"] == 600**2 / found["seconds"]
    assert 0.2 < found["peak_gib"] < 3
    assert (tmp_path / "memory.png").stat().st_size > 5000
    with rasterio.open(folder / "map.tif") as file:
        assert file.shape == (600, 600)


def test_a_generated_scene_is_one_place_mirrored_until_it_fills_the_tile(tmp_path, monkeypatch):
    with rasterio.open(generated(tmp_path / "s2.tif", 1300, "s2")) as file:
        pixels = file.read(4)
    np.testing.assert_array_equal(pixels[1024:], pixels[1024 - 276 : 1024][::-1])
    np.testing.assert_array_equal(pixels[:, 1024:], pixels[:, 1024 - 276 : 1024][:, ::-1])
    assert len(np.unique(pixels)) > 100


def test_memory_of_children_counts():
    child = "import time; a = bytearray(300 << 20); time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    _, looks, status = watched([sys.executable, "-c", parent])
    assert status == 0
    assert 0.3 < max(gib for _, gib in looks) < 0.6
