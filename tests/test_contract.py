"""What the numbers mean travels with them, and every hand-over that does not fit says both sides."""

import json

import numpy as np
import pytest
from tiny import TINY

from cromss.config import resolve
from cromss.contract import Contract, drift, physical, require_same
from cromss.data.ingestion import Ingest, ingest
from cromss.data.patch import Patch
from cromss.data.store import PatchStore, StoreWriter
from cromss.data.synthetic import SyntheticEarth
from cromss.networks.encoders import load_encoder, save_encoder
from cromss.sensors import SENTINEL2
from cromss.training import pretraining
from cromss.training.downstream import judge
from cromss.training.state import Inputs


def test_a_contract_tells_stored_from_physical_values():
    codes = Contract.of("s2", ("B4", "B10"), "uint8")
    low, width = SENTINEL2.interval(("B4", "B10"))
    np.testing.assert_allclose(codes.stored(low), [0, 0], atol=1e-4)
    np.testing.assert_allclose(codes.stored(low + width), [255, 255], rtol=1e-6)
    np.testing.assert_allclose(physical("s2", ("B4", "B10")).stored([1364.0, 22.0]), [1364, 22])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"bands": ("VH", "VV")},
            r"s1 bands \(in order\) differ: the store has VV, VH, the file has VH, VV; valid names: VV, VH",
        ),
        ({"unit": "linear"}, "s1 unit differ: the store has dB, the file has linear"),
        ({"product": "Sentinel-1 SLC"}, "s1 product differ: the store has Sentinel-1, the file has Sentinel-1 SLC"),
        ({"encoding": "raw"}, "s1 encoding differ: the store has uint8, the file has raw"),
        ({"scale": (1.0, 2.0)}, "s1 scale differ: the store has 0.0824624, .* the file has 1, 2"),
        ({"offset": (0.0, 0.0)}, "s1 offset differ"),
    ],
)
def test_whatever_differs_is_named_with_both_sides(changes, said):
    ours = Contract.of("s1", ("VV", "VH"), "uint8")
    with pytest.raises(ValueError, match=said):
        require_same(ours, "the store", ours.model_copy(update=changes), "the file")
    require_same(ours, "the store", ours.measured([1, 2], [3, 4]), "the file")  # statistics are the data's


def test_a_selection_keeps_every_bands_own_numbers():
    whole = Contract.of("s2", ("B2", "B3", "B4"), "uint8").measured([1, 2, 3], [4, 5, 6])
    part = whole.select(("B4", "B2"), "the store")
    assert (part.mean, part.std) == ((3, 1), (6, 4))
    assert part.scale == (whole.scale[2], whole.scale[0])
    with pytest.raises(ValueError, match="the store lacks s2 B8, B9; it holds B2, B3, B4"):
        whole.select(("B8", "B9"), "the store")


def test_drift_names_the_bands_that_lie_far_apart():
    theirs = physical("s2", ("B2", "B3")).measured([1400, 1300], [800, 800])
    assert drift(theirs.measured([1500, 2800], [1, 1]), theirs) == []
    assert drift(theirs.measured([0.14, 2800], [1, 1]), theirs) == []
    (found,) = drift(theirs.measured([1500, 3000], [1, 1]), theirs)
    assert found.startswith("B3 (3,000 beside 1,300 ± 800")


# --- hand-overs ---------------------------------------------------------------------------------------------------------


def test_source_to_store_a_patch_of_other_bands_is_refused(tmp_path):
    patch = Patch(
        patch_id="a/0", location_id="a", acquisition="0", images={"s1": np.zeros((2, 8, 8), np.float32)},
        contracts={"s1": physical("s1", ("VH", "VV"))}, label=np.zeros((8, 8), np.uint8),
    )  # fmt: skip
    writer = StoreWriter(tmp_path / "store", scheme="dynamic-world", bands={"s1": ("VV", "VH")}, size=(8, 8))
    with pytest.raises(ValueError, match=r"the store has VV, VH, a/0 has VH, VV"):
        writer.add([patch], "train", 0)


def test_store_to_batch_to_network_bands_go_by_name(worlds):
    from cromss.data.stream import open_rows
    from cromss.networks.scaling import MeanStd

    store = PatchStore.open(worlds[0])
    batch = next(open_rows(store, split="train", batch_size=2, bands={"s2": ("B4", "B3", "B2")}))
    assert batch.bands == {"s2": ("B4", "B3", "B2")}
    with pytest.raises(
        ValueError, match="s2: the network reads B2, B3, B4, the batch holds B4, B3, B2; valid names: B1, B2"
    ):
        Inputs({"s2": ("B2", "B3", "B4")}, "uint8", MeanStd())(batch)
    turned = batch.with_bands({"s2": ("B2", "B3", "B4")})
    np.testing.assert_array_equal(turned.images["s2"], batch.images["s2"].flip(1))


@pytest.fixture(scope="module")
def pretrained(worlds, tmp_path_factory):
    out = tmp_path_factory.mktemp("contract") / "run"
    pretraining.run(resolve(TINY, {"optim": {"epochs": 1}}), PatchStore.open(worlds[0]), out)
    return out


def test_store_to_encoder_the_card_says_what_it_was_trained_on(pretrained, worlds):
    card = load_encoder(pretrained / "encoders" / "s2.safetensors")[1]
    store = PatchStore.open(worlds[0])
    assert card.contract == store.contract("s2")
    assert card.contract.mean == tuple(band.mean for band in store.manifest.statistics["train"]["s2"])


def test_store_to_checkpoint_another_contract_is_refused_before_the_configuration_is_compared(pretrained, worlds):
    state = next((pretrained / "checkpoints").glob("step-*")) / "state.json"
    text = json.loads(state.read_text())
    assert Contract(**text["contracts"]["s1"]) == PatchStore.open(worlds[0]).contract("s1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"product": "Sentinel-2 L2A"}, r"s2 product differ: .*has Sentinel-2 L1C, the encoder .*has Sentinel-2 L2A"),
        ({"unit": "reflectance"}, r"s2 unit differ: .*has DN, the encoder .*has reflectance"),
    ],
)
def test_encoder_to_downstream_another_product_or_unit_is_refused(pretrained, worlds, tmp_path, change, said):
    from cromss.networks.encoders import build_encoder

    state, card = load_encoder(pretrained / "encoders" / "s2.safetensors")
    encoder = build_encoder(card.architecture, len(card.bands), card.depth)
    encoder.load_state_dict(state)
    other = card.model_copy(update={"contract": card.contract.model_copy(update=change)})
    save_encoder(tmp_path / "s2.safetensors", encoder, other)
    config = resolve(TINY)
    with pytest.raises(ValueError, match=said):
        judge(
            config.transfer, PatchStore.open(worlds[1]), tmp_path / "out", modality="s2", mode="frozen", repeat=0,
            encoder=tmp_path / "s2.safetensors", architecture="", scaling=card.scaling,
        )  # fmt: skip


def test_every_shard_says_what_its_numbers_mean(tmp_path):
    import pyarrow.parquet as pq

    ingest(SyntheticEarth(places=4, size=32, seasons=1), tmp_path / "store", Ingest(bands="9"))
    described = json.loads(pq.read_schema(tmp_path / "store" / "shard-00000.parquet").metadata[b"cromss"])
    for name, contract in PatchStore.open(tmp_path / "store").contracts.items():
        pixels = {key: value for key, value in described["pixels"][name].items() if key in Contract.model_fields}
        assert Contract(**pixels) == contract.model_copy(update={"mean": (), "std": ()})


def test_another_processing_level_is_another_product_under_the_same_band_names(tmp_path):
    surface = {"s1": physical("s1", ("VV", "VH")), "s2": physical("s2", ("B2", "B3"), "Sentinel-2 L2A")}
    patch = Patch(
        patch_id="a/0", location_id="a", acquisition="0", contracts=surface, label=np.zeros((8, 8), np.uint8),
        images={"s1": np.zeros((2, 8, 8), np.float32), "s2": np.ones((2, 8, 8), np.uint16)},
    )  # fmt: skip
    bands = {"s1": ("VV", "VH"), "s2": ("B2", "B3")}
    writer = StoreWriter(tmp_path / "store", scheme="dynamic-world", bands=bands, size=(8, 8))
    with pytest.raises(ValueError, match="s2 product differ: the store has Sentinel-2 L1C, a/0 has Sentinel-2 L2A"):
        writer.add([patch], "train", 0)


def test_a_transfer_says_when_the_data_lie_far_from_what_the_encoder_knows(pretrained, worlds, tmp_path):
    card = load_encoder(pretrained / "encoders" / "s2.safetensors")[1]
    store = PatchStore.open(worlds[1])
    ours = store.contract("s2")
    assert drift(ours, card.contract) == []  # another region of the same Earth
    shifted = ours.measured([mean + 10_000 for mean in ours.mean], ours.std)
    assert len(drift(shifted, card.contract)) == 13
