import argparse
import json

import numpy as np
import pytest
import torch

from cromss.bench import main
from cromss.benchmarks.material import write_random_store, write_random_tree
from cromss.benchmarks.readers import (
    GeoTiffFolder,
    Jitter,
    Rate,
    bare_batches,
    bytes_of,
    jitter,
    timed,
)
from cromss.benchmarks.stream import PARTS, add_arguments, measure, report
from cromss.data.patch import Batch
from cromss.data.plan import Plan
from cromss.data.sources.ssl4eo import Ssl4eo
from cromss.data.stream import open_batches


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_random_store(tmp_path_factory.mktemp("bench") / "store", places=64, size=64)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_random_tree(tmp_path_factory.mktemp("bench") / "tree", places=16, seasons=2, size=24)


@pytest.fixture
def plan(store):
    return Plan(store.blocks, seed=0, epochs=8, batch_size=16)


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_bare_pyarrow_delivers_the_batches_of_the_stream(store, plan):
    for bare, batch in zip(bare_batches(store, plan), open_batches(store, plan), strict=True):
        assert bare.ids == batch.ids
        assert bare.images["s2"].equal(batch.images["s2"])


def test_bare_pyarrow_compares_no_checksum(store, plan, monkeypatch):
    monkeypatch.setattr("cromss.data.assembly.checksum", lambda *_: 1 / 0)
    assert timed(bare_batches(store, plan)).patches == 8 * 64
    with pytest.raises(ZeroDivisionError):
        timed(open_batches(store, plan))


def test_an_epoch_reads_a_quarter_of_four_seasons(store, plan):
    read, whole = bytes_of(store, plan)
    assert whole / read == pytest.approx(4, rel=0.02)
    assert whole == pytest.approx(sum(shard.bytes for shard in store.manifest.shards), rel=0.02)


def test_every_patch_is_counted_and_the_longest_waits_are_found(monkeypatch):
    def batch(epoch: int) -> Batch:
        return Batch({}, {}, torch.zeros(2, 1, 1), ["a", "b"], torch.full((2,), epoch), torch.zeros(2))

    clock = iter([0.0, 2.0, 2.5, 5.5, 6.5, 7.5])  # start, four batches, end
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    found = timed(batch(epoch) for epoch in (0, 0, 0, 1))
    assert found == Rate(patches=8, seconds=7.5, first=2.0, gap=3.0, border=1.0)


def test_the_tree_is_one_that_the_layout_reads_and_the_loader_sees_its_pixels(tree):
    source = Ssl4eo(path=tree)
    patches = [patch for place in source.locations() for patch in source.read(place)]
    items = GeoTiffFolder(tree, items=40)
    assert (len(patches), len(items)) == (32, 40)
    for item, patch in enumerate(patches[:4]):
        found = items[item]
        for name in ("s1", "s2"):
            np.testing.assert_array_equal(found[name], patch.images[name])
        np.testing.assert_array_equal(found["label"], patch.label)
    np.testing.assert_array_equal(items[32]["s2"], items[0]["s2"])


def test_the_step_is_timed_alone_and_beside_the_reader(store, plan):
    found = jitter(store, plan, steps=10)
    assert 0 < found.alone[0] <= found.alone[1]
    assert 0 < found.reading[0] <= found.reading[1]
    assert Jitter((1.0, 2.0), (1.5, 5.0)).ratios == (1.5, 2.5)


def test_the_table_has_what_was_not_left_out(store, tree, tmp_path, monkeypatch):
    monkeypatch.setattr("cromss.benchmarks.stream.LIVE_PATCHES", 64)
    found = measure(
        store, tree, tmp_path, options("--epochs", "2", "--batch-size", "16", "--skip", "ray,train,loader,jitter")
    )
    assert list(found["rows"]) == ["bare pyarrow", "direct reader", "GeoTIFF, direct reader"]
    assert found["rows"]["bare pyarrow"]["of bare"] == 1
    assert found == json.loads(json.dumps(found))
    said = report(found | {"step": {"alone": (0.02, 0.03), "reading": (0.022, 0.06), "ratios": (1.1, 2.0)}})
    assert "4.00 times fewer" in said
    assert "a converted store, read directly, is" in said
    assert "a step of 20.0 ms (95 %: 30.0) takes 22.0 ms (95 %: 60.0) beside the direct reader: x 1.10" in said


def test_numbers_and_picture_are_written(store, tmp_path, capsys):
    words = ["--store", str(store.path), "--skip", ",".join(PARTS), "--epochs", "2", "--batch-size", "16"]
    assert main(["stream", *words, "--json", str(tmp_path / "a.json"), "--png", str(tmp_path / "a.png")]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert report(found) in capsys.readouterr().out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_arguments_are_one_line(tmp_path, capsys):
    assert main(["stream", "--store", str(tmp_path)]) == 2
    assert "is not a patch store" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["stream", "--skip", "gpu"])
    assert "leave out any of ray, train" in capsys.readouterr().err
