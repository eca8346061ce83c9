import pytest

from cromss.bench import main
from cromss.benchmarks.stream import bare_batches, bytes_per_epoch, timed, write_random_store
from cromss.data.plan import Plan
from cromss.data.stream import open_batches


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_random_store(tmp_path_factory.mktemp("bench") / "store", places=64, size=64)


@pytest.fixture
def plan(store):
    return Plan(store.blocks, seed=0, epochs=8, batch_size=16)


def test_bare_pyarrow_delivers_the_batches_of_the_stream(store, plan):
    for bare, batch in zip(bare_batches(store, plan), open_batches(store, plan), strict=True):
        assert bare.ids == batch.ids
        assert bare.images["s2"].equal(batch.images["s2"])


def test_an_epoch_reads_a_quarter_of_four_seasons(store, plan):
    assert bytes_per_epoch(store, plan) == pytest.approx(0.25, rel=0.02)


def test_every_patch_is_counted(store, plan):
    assert timed(bare_batches(store, plan)).patches == 8 * 64


def test_a_store_that_is_none_is_one_line(tmp_path, capsys):
    assert main(["stream", "--store", str(tmp_path)]) == 2
    assert "is not a patch store" in capsys.readouterr().err
