import gc
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from batches import assert_same

from cromss.data import stream
from cromss.data.assembly import read_window, row_key
from cromss.data.plan import Plan
from cromss.data.store import PatchStore
from cromss.data.stream import DirectReader, RayReader, open_batches, open_rows


def plan_of(store: PatchStore, **options) -> Plan:
    return Plan(store.blocks, **{"seed": 0, "epochs": 6, "batch_size": 8, "lanes": 4, "window": 2} | options)


def place_of(label: torch.Tensor) -> int:
    """The place that a tiny label starts with."""
    return int(label[0, 0]) * 9 + int(label[0, 1])


def rows_of(batches) -> list[tuple[int, str]]:
    return [(int(epoch), patch) for batch in batches for epoch, patch in zip(batch.epochs, batch.ids, strict=True)]


def test_the_rows_of_an_epoch_are_every_training_place_once(tiny_store):
    plan = plan_of(tiny_store)
    rows = rows_of(open_batches(tiny_store, plan))
    assert len(rows) == plan.steps * 8 == 6 * 54 - plan.dropped
    assert len({(epoch, patch.split("/")[0]) for epoch, patch in rows}) == len(rows)
    places = {f"L{place:02d}" for place in range(60) if place % 10 != 9}
    for epoch in range(5):
        assert {patch.split("/")[0] for e, patch in rows if e == epoch} <= places
    assert {patch.split("/")[0] for epoch, patch in rows if epoch == 0} == places


@pytest.mark.parametrize("world", [2, 4])
def test_the_workers_batches_together_are_the_batch_of_one_worker(tiny_store, world):
    plan = plan_of(tiny_store)
    shares = [list(open_batches(tiny_store, plan, rank=rank, world=world)) for rank in range(world)]
    assert {len(share) for share in shares} == {plan.steps}
    for step, alone in enumerate(open_batches(tiny_store, plan)):
        assert [patch for share in shares for patch in share[step].ids] == alone.ids
        assert torch.equal(torch.cat([share[step].images["s2"] for share in shares]), alone.images["s2"])
        assert torch.equal(torch.cat([share[step].keys for share in shares]), alone.keys)


def test_resuming_at_any_step_gives_the_rest_of_the_stream(tiny_store):
    plan = plan_of(tiny_store)
    whole = list(open_batches(tiny_store, plan))
    for step in range(plan.steps + 1):
        assert rows_of(open_batches(tiny_store, plan, start_step=step)) == rows_of(whole[step:])


def test_a_run_may_change_its_number_of_workers_in_mid_epoch(tiny_store):
    plan, step = plan_of(tiny_store), 10
    before = rows_of(list(open_batches(tiny_store, plan))[:step])
    after = [rows_of(open_batches(tiny_store, plan, rank=rank, world=2, start_step=step)) for rank in range(2)]
    assert sorted(before + after[0] + after[1]) == sorted(rows_of(open_batches(tiny_store, plan)))


def test_pixels_labels_and_valid_are_those_of_the_patch(tiny_store, place_patches):
    for batch in list(open_batches(tiny_store, plan_of(tiny_store), clean=True))[:8]:
        for row, patch_id in enumerate(batch.ids):
            place, acquisition = int(patch_id[1:3]), int(patch_id[4:])
            wanted = place_patches(place, (1, 2, 4)[place % 3])[acquisition]
            assert batch.images["s1"].dtype == torch.uint8
            np.testing.assert_array_equal(batch.labels[row], wanted.label)
            np.testing.assert_array_equal(batch.clean[row], wanted.clean)
            np.testing.assert_array_equal(batch.valid[row], wanted.valid)
            assert int(batch.keys[row]) == row_key(0, int(batch.epochs[row]), patch_id)


def test_a_raw_store_streams_the_physical_values(make_store, place_patches):
    store = make_store(encoding="raw")
    for batch in open_rows(store, batch_size=7, split="train", slot=None):
        for row, patch_id in enumerate(batch.ids):
            place, acquisition = int(patch_id[1:3]), int(patch_id[4:])
            wanted = place_patches(place, (1, 2, 4)[place % 3])[acquisition]
            np.testing.assert_array_equal(batch.images["s1"][row], wanted.images["s1"])
            np.testing.assert_array_equal(batch.images["s2"][row], wanted.images["s2"])


def test_valid_is_none_where_every_pixel_is(make_store):
    store = make_store(places=range(0, 60, 5))
    assert all(batch.valid is None for batch in open_rows(store, batch_size=5, split="train"))


def test_bands_come_by_name_in_the_order_asked_for_and_modalities_left_out_are_not_read(tiny_store):
    plan = plan_of(tiny_store)
    everything = open_batches(tiny_store, plan)
    for batch, whole in zip(open_batches(tiny_store, plan, bands={"s2": ("B4", "B2")}), everything, strict=True):
        assert list(batch.images) == ["s2"]
        assert torch.equal(batch.images["s2"], whole.images["s2"][:, [2, 0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": {"s2": ("B8",)}}, r"lacks s2 B8; it holds B2, B3, B4"),
        ({"bands": {"s3": ("B8",)}}, r"has no modality 's3'"),
        ({"world": 3}, r"3 workers cannot share 4 lanes equally; valid: 1, 2, 4"),
    ],
)
def test_what_the_store_lacks_is_refused_before_anything_is_read(tiny_store, options, message):
    with pytest.raises(ValueError, match=message):
        open_batches(tiny_store, plan_of(tiny_store), **options)


def test_seasons_are_the_labels_of_the_same_place_in_time_order(tiny_store, place_patches):
    for batch in open_batches(tiny_store, plan_of(tiny_store), seasons=True):
        assert batch.seasons.shape == (8, 4, 16, 16)
        for row, patch_id in enumerate(batch.ids):
            place, acquisition = int(patch_id[1:3]), int(patch_id[4:])
            wanted = place_patches(place, (1, 2, 4)[place % 3])
            for slot in range(4):
                label = wanted[slot].label if slot < len(wanted) else 255
                np.testing.assert_array_equal(batch.seasons[row, slot], label)
            assert torch.equal(batch.seasons[row, acquisition], batch.labels[row])


def test_cycle_streams_every_acquisition_of_every_place_once_in_four_epochs(tiny_store):
    plan = plan_of(tiny_store, seasons="cycle", epochs=6)
    rows = [row for row in rows_of(open_batches(tiny_store, plan)) if row[0] < 4]
    of_four = [patch for _, patch in rows if int(patch[1:3]) % 3 == 2]
    assert len(of_four) == len(set(of_four)) == 4 * 18


def test_an_epoch_reads_a_quarter_of_the_pixels_of_four_seasons(make_store, monkeypatch):
    store = make_store(n_of=lambda _: 4)
    groups, read = [], PatchStore.read

    def counting(self, shard, group, columns):
        groups.append((shard, group))
        return read(self, shard, group, columns)

    monkeypatch.setattr(PatchStore, "read", counting)
    plan = plan_of(store, epochs=16)
    for _ in open_batches(store, plan):
        pass
    size = {
        (index, group): pq.read_metadata(store.path / shard.path).row_group(group).total_byte_size
        for index, shard in enumerate(store.manifest.shards)
        for group in range(shard.row_groups)
    }
    training = np.flatnonzero(store.blocks.split == "train")
    total = sum(size[store.blocks.shard[b], store.blocks.first[b] + s] for b in training for s in range(4))
    assert sum(size[group] for group in groups) / plan.epochs / total == pytest.approx(0.25, rel=0.02)


def test_evaluation_gives_every_place_of_the_folds_once_in_a_fixed_order(tiny_store):
    def ids(**options):
        return [patch for batch in open_rows(tiny_store, batch_size=7, split="train", **options) for patch in batch.ids]

    whole = ids(folds=[1, 3])
    assert sorted({int(patch[1:3]) for patch in whole}) == [
        place for place in range(60) if place % 4 in (1, 3) and place % 10 != 9
    ]
    assert len(whole) == len({patch[:3] for patch in whole})
    assert ids(folds=[1, 3]) == whole
    assert sorted(ids(folds=[1, 3], rank=0, world=2) + ids(folds=[1, 3], rank=1, world=2)) == sorted(whole)
    everything = ids(slot=None)
    assert len(everything) == len(set(everything)) == tiny_store.manifest.patches["train"]


def test_a_flipped_byte_stops_the_stream_with_the_name_of_the_shard(make_store):
    store = make_store()
    shard = store.path / "shard-00000.parquet"
    content = bytearray(shard.read_bytes())
    column = pq.read_metadata(shard).row_group(0).column(pq.read_schema(shard).names.index("s2"))
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard shard-00000\.parquet cannot be read"):
        list(open_rows(PatchStore.open(store.path), batch_size=8, split=str(store.blocks.split[0])))


def threads() -> int:
    gc.collect()
    return sum(thread.name.startswith("cromss-") for thread in threading.enumerate())


def test_an_abandoned_stream_leaves_no_thread(tiny_store):
    before = threads()
    batches = open_batches(tiny_store, plan_of(tiny_store))
    next(batches)
    assert threads() > before
    batches.close()
    assert threads() == before
    batches = open_batches(tiny_store, plan_of(tiny_store))
    next(batches)
    del batches
    assert threads() == before


def test_batches_own_their_memory(tiny_store):
    batches = list(open_batches(tiny_store, plan_of(tiny_store)))
    assert len({batch.images["s2"].data_ptr() for batch in batches}) == len(batches)


def test_the_ray_reader_without_ray_says_so(tiny_store, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ValueError, match=r"Ray is not running; .*kind=direct"):
        open_batches(tiny_store, plan_of(tiny_store), reader=RayReader())


def test_blocks_cut_and_joined_by_ray_become_windows_again(tiny_store):
    plan = plan_of(tiny_store)
    lanes = plan.lanes_of(0, 1)
    windows = list(plan.windows(lanes, 0, plan.count(lanes)))
    tables = [read_window(tiny_store, window, ["patch_id", "label", "label_crc32"], False) for window in windows]
    for pieces in (1, 3, 1000):
        joined = pa.concat_tables(tables)
        cut = (joined.slice(start, pieces) for start in range(0, len(joined), pieces))
        found = stream._reassemble(iter(windows), cut)
        for rows, table in zip(found, tables, strict=True):
            assert rows.ids == table["patch_id"].to_pylist()
            assert [cell.tobytes() for cell in rows.cells["label"]] == table["label"].to_pylist()


def test_ray_and_direct_streams_are_equal_batch_for_batch(ray_session, tiny_store, monkeypatch):
    plan = plan_of(tiny_store, epochs=3)
    monkeypatch.setattr(stream, "TASKS_PER_EXECUTION", 10)  # so that the run takes more than one
    for share in ({"rank": 0, "world": 1}, {"rank": 1, "world": 2, "start_step": 7}):
        options = share | {"clean": True, "seasons": True, "bands": {"s1": ("VH",), "s2": ("B4", "B2")}}
        direct = list(open_batches(tiny_store, plan, reader=DirectReader(), **options))
        by_ray = list(open_batches(tiny_store, plan, reader=RayReader(cpus=0.5, readers=2), **options))
        assert len(direct) == len(by_ray) == plan.steps - share.get("start_step", 0)
        for first, second in zip(direct, by_ray, strict=True):
            assert_same(first, second)


@pytest.mark.timeout(90)
def test_a_ray_stream_runs_on_the_fraction_of_a_cpu_that_training_leaves(ray_session, tiny_store):
    import ray

    @ray.remote(num_cpus=1.75)
    class Training:
        def started(self) -> bool:
            return True

    training = Training.remote()
    assert ray.get(training.started.remote())
    plan = plan_of(tiny_store, epochs=2)
    assert len(list(open_batches(tiny_store, plan, reader=RayReader(cpus=0.25)))) == plan.steps
    ray.kill(training)


def test_a_ray_stream_may_be_abandoned_and_another_opened(ray_session, tiny_store):
    plan = plan_of(tiny_store, epochs=20)
    for _ in range(2):
        batches = open_batches(tiny_store, plan, reader=RayReader())
        assert next(batches).ids == next(open_batches(tiny_store, plan)).ids
        batches.close()


def test_a_damaged_shard_reaches_the_consumer_of_a_ray_stream(ray_session, make_store):
    store = make_store()
    shard = Path(store.path / "shard-00000.parquet")
    content = bytearray(shard.read_bytes())
    column = pq.read_metadata(shard).row_group(0).column(pq.read_schema(shard).names.index("s2"))
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    shard.write_bytes(content)
    plan = plan_of(PatchStore.open(store.path), split=str(store.blocks.split[0]), folds=[int(store.blocks.fold[0])])
    with pytest.raises(ValueError, match=r"^[^\n]*shard-00000\.parquet cannot be read[^\n]*$"):
        list(open_batches(store, plan, reader=RayReader()))
