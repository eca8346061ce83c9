import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from cromss import sensors
from cromss.data.store import Lost, PatchStore, StoreWriter


def places_and_acquisitions(store: PatchStore, block: int, slot: int) -> list[tuple[int, int]]:
    """(place, acquisition) of the rows of a row group, from the digits their labels start with."""
    table = store.read(store.blocks.shard[block], store.blocks.first[block] + slot, ["label"])
    return [(label[0] * 9 + label[1], label[2]) for label in table["label"].to_pylist()]


def test_any_row_group_of_a_block_holds_every_place_once_and_slots_together_hold_every_acquisition(tiny_store):
    blocks, seen = tiny_store.blocks, []
    for block in range(len(blocks)):
        n = blocks.n[block]
        slots = [places_and_acquisitions(tiny_store, block, slot) for slot in range(n)]
        places = [place for place, _ in slots[0]]
        assert len(set(places)) == len(places) == blocks.rows[block] <= 16
        for slot, rows in enumerate(slots):
            assert rows == [(place, (slot + i) % n) for i, place in enumerate(places)]
        seen += [row for rows in slots for row in rows]
    assert sorted(seen) == sorted((place, a) for place in range(60) for a in range((1, 2, 4)[place % 3]))


def test_a_block_never_mixes_number_of_acquisitions_split_or_fold(tiny_store):
    for block in range(len(tiny_store.blocks)):
        table = tiny_store.read(
            tiny_store.blocks.shard[block], tiny_store.blocks.first[block], ["location_id", "split", "fold"]
        )
        assert set(table["split"].to_pylist()) == {tiny_store.blocks.split[block]}
        assert set(table["fold"].to_pylist()) == {tiny_store.blocks.fold[block]}
        numbers = {(1, 2, 4)[int(name[1:]) % 3] for name in table["location_id"].to_pylist()}
        assert numbers == {tiny_store.blocks.n[block]}


def test_the_manifest_counts_what_is_in_the_shards(tiny_store):
    manifest = tiny_store.manifest
    assert len(manifest.shards) > 1
    assert manifest.places == {"test": 6, "train": 54}
    assert sum(manifest.patches.values()) == sum(shard.rows for shard in manifest.shards) == 20 * (1 + 2 + 4)
    assert sum(sum(counts.values()) for counts in manifest.histogram.values()) == 140 * 16 * 16
    assert manifest.source == {"kind": "tiny"}


@pytest.mark.parametrize("encoding", ["uint8", "raw"])
def test_patches_come_back_as_they_went_in(make_store, place_patches, encoding):
    store = make_store(encoding=encoding)
    for found in store.sample(60):
        place, acquisition = int(found.location_id[1:]), int(found.acquisition)
        wanted = place_patches(place, (1, 2, 4)[place % 3])[acquisition]
        np.testing.assert_array_equal(found.label, wanted.label)
        np.testing.assert_array_equal(found.clean, wanted.clean)
        np.testing.assert_array_equal(np.ones_like(wanted.valid) if found.valid is None else found.valid, wanted.valid)
        assert (found.patch_id, found.crs, found.transform) == (wanted.patch_id, wanted.crs, wanted.transform)
        assert found.notes == wanted.notes
        for name, bands in store.bands.items():
            card = sensors.sensor(name)
            if encoding == "raw":
                np.testing.assert_array_equal(found.images[name], wanted.images[name])
            else:
                step = card.interval(bands)[1][:, None, None] / 255
                low, width = (bound[:, None, None] for bound in card.interval(bands))
                inside = np.clip(wanted.images[name], low, low + width)
                assert (np.abs(found.images[name] - inside) <= step * 1.001).all()


def test_pixels_without_data_are_stored_as_the_lowest_code(make_store, place_patches, tmp_path):
    patch = place_patches(0, 1)[0]
    image = patch.images["s1"].copy()
    image[:, 0, 0] = np.nan
    with StoreWriter(
        tmp_path / "s", scheme="dynamic-world", bands={"s1": ("VV", "VH")}, size=(16, 16), encoding="raw"
    ) as writer:
        writer.add([replace(patch, images={"s1": image})], "train", 0)
    [found] = PatchStore.open(tmp_path / "s").sample(1)
    card = sensors.SENTINEL1
    assert (card.encode(found.images["s1"], card.bands)[:, 0, 0] == 0).all()


def test_two_ingests_of_the_same_patches_are_the_same_store(make_store):
    first, second, other = make_store("a"), make_store("b"), make_store("c", places=range(59))
    assert first.digest == second.digest != other.digest


def test_describe_tells_the_encoding_the_bands_and_the_classes(tiny_store):
    text = tiny_store.describe()
    for part in ("140 of 60 places", "uint8", "VV VH", "B2 B3 B4", "dynamic-world", "54 places, 4 folds", "water 1"):
        assert part in text


def test_a_whole_store_verifies(tiny_store):
    assert tiny_store.damaged(content=True) == []


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="already holds something"):
        StoreWriter(tmp_path, scheme="dynamic-world", bands={"s1": ("VV",)}, size=(16, 16))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_unwritable_output_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        StoreWriter(tmp_path / "file" / "store", scheme="dynamic-world", bands={"s1": ("VV",)}, size=(16, 16))


def test_an_interrupted_ingest_leaves_no_store(tmp_path, place_patches):
    bands = {"s1": ("VV", "VH"), "s2": ("B2", "B3", "B4")}

    def interrupted() -> None:
        with StoreWriter(tmp_path / "s", scheme="dynamic-world", bands=bands, size=(16, 16)) as writer:
            writer.add(place_patches(0, 4), "train", 0)
            writer.end_fold()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(ValueError, match="is not a patch store"):
        PatchStore.open(tmp_path / "s")


def test_an_empty_folder_is_no_store(tmp_path):
    with pytest.raises(ValueError, match=r"is not a patch store .*cromss.ingest"):
        PatchStore.open(tmp_path)


def edit_manifest(store: PatchStore, **changes) -> None:
    file = store.path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_newer_store_is_refused_with_both_versions(make_store):
    store = make_store()
    edit_manifest(store, schema_version=7, unheard_of=True)
    with pytest.raises(ValueError, match=r"schema version 7, this cromss reads 2: update"):
        PatchStore.open(store.path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/shard-00000.parquet", "a/../../b.parquet"])
def test_a_manifest_that_points_outside_its_store_is_refused(make_store, path):
    store = make_store()
    shards = [shard.model_dump(mode="json") for shard in store.manifest.shards]
    edit_manifest(store, shards=[shards[0] | {"path": path}])
    with pytest.raises(ValueError, match="must be relative"):
        PatchStore.open(store.path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema_version": 2}', '"x"'])
def test_a_mangled_manifest_is_one_clear_line(make_store, text):
    store = make_store()
    (store.path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: .*ingest again") as error:
        PatchStore.open(store.path)
    assert "\n" not in str(error.value)


def test_a_truncated_shard_is_named_at_start_up(make_store):
    store = make_store()
    shard = store.path / "shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"shard-00000\.parquet has .* bytes instead of .*; list every damaged.*--verify"
    ):
        PatchStore.open(store.path)
    assert [lost.shard for lost in PatchStore.open(store.path, check=False).damaged()] == ["shard-00000.parquet"]


def test_a_missing_shard_is_named_at_start_up(make_store):
    store = make_store()
    (store.path / "shard-00000.parquet").unlink()
    with pytest.raises(ValueError, match=r"shard-00000\.parquet is missing"):
        PatchStore.open(store.path)


def test_a_shard_with_a_broken_footer_is_named_at_start_up(make_store):
    store = make_store()
    shard = store.path / "shard-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[-4:] = b"XXXX"
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00000\.parquet cannot be read"):
        PatchStore.open(store.path)


def test_a_shard_of_other_rows_is_named_at_start_up(make_store):
    store = make_store()
    shard = store.manifest.shards[0].model_dump(mode="json")
    edit_manifest(store, shards=[shard | {"rows": shard["rows"] + 1}])
    with pytest.raises(ValueError, match="rows instead of"):
        PatchStore.open(store.path)


def flip_pixel_byte(store: PatchStore, block: int = 0) -> None:
    """One byte in the middle of a page of s2 pixels."""
    shard = store.path / store.manifest.shards[store.blocks.shard[block]].path
    group = pq.read_metadata(shard).row_group(int(store.blocks.first[block]))
    column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "s2")
    content = bytearray(shard.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    shard.write_bytes(content)


def test_a_flipped_byte_in_a_page_is_caught_on_read_and_by_verify(make_store):
    store = make_store()
    flip_pixel_byte(store)
    opened = PatchStore.open(store.path)  # sizes and footers are whole
    with pytest.raises(ValueError, match=r"shard shard-00000\.parquet cannot be read, row group 0: .*--repair"):
        opened.read(0, 0, ["s2"])
    (found,) = opened.damaged(content=True)
    assert (found.shard, found.reason) == ("shard-00000.parquet", "differs from what was ingested (sha256)")
    assert found.patches == opened.manifest.shards[0].rows


@pytest.mark.parametrize("version", [1])
def test_an_older_store_is_refused_with_the_way_out(make_store, version):
    store = make_store()
    edit_manifest(store, schema_version=version)
    with pytest.raises(ValueError, match=r"schema version 1, this cromss reads 2: ingest again"):
        PatchStore.open(store.path)


def test_a_shard_of_another_store_is_named_at_start_up(make_store):
    store, other = make_store(), make_store("other", encoding="raw")
    name = store.manifest.shards[0].path
    (store.path / name).write_bytes((other.path / name).read_bytes())
    content = other.manifest.shards[0].model_dump(mode="json")
    edit_manifest(store, shards=[content])
    with pytest.raises(ValueError, match="holds other bands, units or sizes than the manifest says"):
        PatchStore.open(store.path)


def test_a_store_without_a_shard_has_its_other_places_and_another_digest(make_store):
    store = make_store(shard_bytes=60_000)
    second = store.manifest.shards[1]
    rest = PatchStore.open(store.path, without=[Lost(second.path, "is missing", second.rows)])
    assert len(rest.blocks) == len(store.blocks) - len(store.manifest.shards[1].blocks)
    assert rest.digest != store.digest
    whole = {patch.patch_id for patch in store.sample(1000)}
    assert {patch.location_id for patch in rest.sample(1000)} < {patch.location_id for patch in store.sample(1000)}
    assert len(whole) == store.places("train") > rest.places("train")
