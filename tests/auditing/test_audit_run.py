"""The whole: what an audit finds where the answer is known, that it goes on, and what it refuses."""

import csv
import json

import numpy as np
import pytest
import torch
from audited import S2, config, network, store_of

from cromss.auditing import maps, run, walk
from cromss.auditing.network import Auditor
from cromss.auditing.run import audit
from cromss.auditing.scores import decoded
from cromss.auditing.tiles import COLUMNS, Tiles
from cromss.auditing.walk import groups, read
from cromss.data.assembly import Wanted
from cromss.data.store import PatchStore
from cromss.data.synthetic import SyntheticEarth
from cromss.landcover import IGNORE
from cromss.objective.crossmodal import ObjectiveConfig
from cromss.training.noise import NoiseMeter
from cromss.trials.worlds import synthetic_stores

ALL = {"seasons": "all", "limit": None, "maps": False}


@pytest.fixture(scope="module")
def store(worlds):
    return PatchStore.open(worlds[0])


@pytest.fixture(scope="module")
def model(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    network(store, folder)
    return folder


def audited(model, store, out, *, cleanlab=False, reference=None, **settings):
    return audit(
        model,
        store,
        out,
        config(**settings),
        reference=reference,
        cleanlab=cleanlab,
        batch_size=5,
        say=lambda line: None,
    )


@pytest.fixture(scope="module")
def done(model, store, tmp_path_factory):
    out = tmp_path_factory.mktemp("audits") / "whole"
    return out, audited(model, store, out)


def answering(monkeypatch, say):
    """Networks whose logits (B, 9, H, W) are what `say` makes of the batch."""
    monkeypatch.setattr(Auditor, "logits", lambda self, batch: {name: say(batch, name) for name in self.modalities})


def knowing(batch, name):
    """The truth, with a doubt of its own at every pixel."""
    draw = torch.Generator().manual_seed(int(batch.keys.sum()) % 2**31)
    truth = torch.nn.functional.one_hot(batch.clean.long().clamp(max=8), 9).movedim(-1, 1).float()
    return (truth * 6 + torch.rand(truth.shape, generator=draw)).log_softmax(1)


def guessing(batch, name):
    """Anything, whatever the image and the label."""
    draw = torch.Generator().manual_seed(int(batch.keys.sum()) % 2**31 + (name == "s1"))
    return torch.randn((len(batch), 9, *batch.labels.shape[1:]), generator=draw).log_softmax(1)


# --- where the answer is known ----------------------------------------------------------------------------------------


def test_who_knows_the_truth_flags_wrong_labels_only_and_suggests_the_right_ones(model, store, tmp_path, monkeypatch):
    answering(monkeypatch, knowing)
    found = audited(model, store, tmp_path / "out", **ALL)["truth"]
    assert found["rate"] > 0.15
    assert found["precision"] == found["auroc"]["joint"] == found["auprc"]["joint"] == 1
    assert found["suggestions_that_differ"]["suggestion_right"] == 1
    assert found["suggestions_that_differ"]["pixels"] == pytest.approx(found["rate"] * found["pixels"], abs=1)


def test_who_guesses_flags_at_the_base_rate(model, store, tmp_path, monkeypatch):
    answering(monkeypatch, guessing)
    found = audited(model, store, tmp_path / "out", **ALL)
    judged, truth = found["pixels"]["judged"], found["truth"]
    assert judged > 100_000
    spread = np.sqrt(truth["rate"] * (1 - truth["rate"]) / truth["flagged"])
    assert truth["precision"] == pytest.approx(truth["rate"], abs=4 * spread)
    assert truth["auroc"]["joint"] == pytest.approx(0.5, abs=0.01)
    assert found["flagged"]["share"] == pytest.approx(0.1, abs=1e-3)


def test_in_a_clean_store_a_share_is_flagged_all_the_same_and_none_of_it_is_wrong(model, tmp_path, monkeypatch):
    clean = PatchStore.open(synthetic_stores(tmp_path, SyntheticEarth(places=2, size=32, noise={"kind": "none"}))[0])
    answering(monkeypatch, knowing)
    found = audited(model, clean, tmp_path / "out", **ALL)
    assert found["flagged"]["share"] == pytest.approx(0.1, abs=0.01)
    assert (found["truth"]["rate"], found["truth"]["precision"], found["truth"]["auroc"]["joint"]) == (0, 0, None)


def test_against_the_truth_it_measures_what_the_noise_meter_does(model, store, tmp_path):
    found = audited(model, store, tmp_path / "out", **ALL)["truth"]
    meter = NoiseMeter(ObjectiveConfig(), pixels=10**8)
    auditor = Auditor.open(model, store)
    for group in groups(store, config(**ALL)):
        batch = read(store, group, Wanted.of(store, clean=True))
        meter(batch, auditor.logits(batch), 0.5, 1.0)
    wanted = meter.result()
    assert (found["pixels"], found["rate"]) == (wanted["pixels"], wanted["rate"])
    for name in ("s1", "s2"):
        assert found["auroc"][name] == pytest.approx(wanted[name]["auroc_F_enhanced"], abs=2e-3)
        assert found["auprc"][name] == pytest.approx(wanted[name]["auprc_F_enhanced"], abs=2e-3)


# --- what it leaves ---------------------------------------------------------------------------------------------------


def test_a_map_and_an_item_for_every_patch_and_a_collection_of_them(done):
    pystac = pytest.importorskip("pystac")
    cogeo = pytest.importorskip("rio_cogeo.cogeo")
    out, found = done
    tifs = sorted((out / "maps").glob("*.tif"))
    assert len(tifs) == found["patches"] == 6
    assert cogeo.cog_validate(tifs[0], strict=True) == (True, [], [])
    collection = pystac.Collection.from_file(str(out / "maps/collection.json"))
    assert {item.id for item in collection.get_items()} == {path.stem for path in tifs}


def test_tiles_come_worst_first_and_add_up(done):
    out, found = done
    tiles = list(csv.DictReader((out / "tiles.csv").open()))
    assert [int(tile["rank"]) for tile in tiles] == [1, 2, 3, 4, 5, 6]
    flagged = [int(tile["flagged"]) for tile in tiles]
    assert flagged == sorted(flagged, reverse=True)
    assert sum(flagged) == found["flagged"]["pixels"] == sum(row["flagged"] for row in found["classes"])
    assert all((out / tile["map"]).exists() for tile in tiles)
    assert found["worst"][0]["patch_id"] == tiles[0]["patch_id"]


def test_tables_pictures_and_page_are_there_and_nothing_else(done):
    out, found = done
    assert sorted(path.name for path in out.iterdir()) == [
        "asked.json", "audit.html", "audit.json", "classes.csv", "confusion.csv", "confusion.png", "maps", "tiles.csv",
        "worst.png",
    ]  # fmt: skip
    rows = list(csv.reader((out / "confusion.csv").open()))
    assert (rows[0][:2], rows[0][-1]) == (["given", "water"], "not sure")
    assert sum(int(value) for row in rows[1:] for value in row[1:]) == found["pixels"]["judged"]
    html = (out / "audit.html").read_text()
    assert "Which labels are wrong?" in html
    assert found["worst"][0]["patch_id"] in html
    told = json.loads((out / "audit.json").read_text())
    assert told["provenance"]["store_digest"] == told["store"]["digest"]
    assert told["model"]["trained_on_these_labels"]


# --- again ------------------------------------------------------------------------------------------------------------


def counted(monkeypatch, owner, name, stop_after=None):
    calls, real = [], getattr(owner, name)

    def call(*args, **kwargs):
        if stop_after is not None and len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return calls


def content(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*"))
            if path.suffix in (".tif", ".csv", ".png")}  # fmt: skip


@pytest.mark.parametrize(("owner", "name", "after"), [(walk, "_keep", 2), (run, "write_map", 3), (run, "page", 0)])
def test_a_stopped_audit_goes_on_where_it_was_to_the_same_bytes(model, store, tmp_path, done, owner, name, after):
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        counted(patch, owner, name, stop_after=after)
        with pytest.raises(KeyboardInterrupt):
            audited(model, store, out)
        assert not (out / "audit.json").exists()
    before, todo = len(list((out / "seen").glob("*.parquet"))), groups(store, config())
    assert before == {"_keep": 2}.get(name, len(todo))
    with pytest.MonkeyPatch.context() as patch:
        kept, written = counted(patch, walk, "_keep"), counted(patch, maps, "write_cog")
        audited(model, store, out)
        assert (len(kept), len(written)) == (len(todo) - before, {"_keep": 6, "write_map": 3, "page": 0}[name])
    assert content(out) == content(done[0])


def test_a_finished_audit_is_read_not_repeated(model, store, done, monkeypatch):
    calls = counted(monkeypatch, Auditor, "look")
    assert audited(model, store, done[0]) == json.loads((done[0] / "audit.json").read_text())
    assert not calls


def test_another_question_in_the_same_folder_is_refused_by_what_differs(model, store, done, tmp_path):
    with pytest.raises(ValueError, match=r"holds another audit \(flagged 0.1 there, 0.2 here\)"):
        audited(model, store, done[0], flagged=0.2)
    network(store, tmp_path, {"model": {"fusion": {"kind": "late"}}})
    with pytest.raises(ValueError, match=r"holds another audit \(model "):
        audited(tmp_path, store, done[0])
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        audited(model, store, tmp_path / "other")


# --- odd and wrong input ----------------------------------------------------------------------------------------------

LABEL = np.arange(32 * 32).reshape(32, 32) % 9


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(store of three bands, network of it)."""
    folder = tmp_path_factory.mktemp("small")
    made = store_of(folder / "store", [LABEL, LABEL.T])
    network(made, folder / "model")
    return made, folder / "model"


def test_no_labels_no_images_and_ids_that_want_out(small, tmp_path):
    nowhere, half = np.zeros((32, 32), bool), np.arange(32)[:, None] < np.full(32, 16)
    odd = store_of(
        tmp_path / "store", [LABEL, np.full((32, 32), IGNORE), LABEL, LABEL], names=["../../out/a", "/b", "c/../d", "<b>x</b>"],
        valid=[None, None, half, nowhere | (LABEL == 0)],
    )  # fmt: skip
    found = audited(small[1], odd, tmp_path / "out", seasons="all", limit=None)
    zeros = int((LABEL == 0).sum())
    assert found["pixels"] == {
        "judged": 1024 + 512 + zeros,
        "unjudged": 0,
        "unlabelled": 1024,
        "nodata": 512 + 1024 - zeros,
    }
    assert {path.name for path in tmp_path.iterdir()} == {"store", "out"}
    tiles = list(csv.DictReader((tmp_path / "out/tiles.csv").open()))
    assert (tiles[-1]["patch_id"], tiles[-1]["pixels"], tiles[-1]["mean_confidence"]) == ("/b", "0", "")
    assert len(list((tmp_path / "out/maps").glob("*.tif"))) == 4
    assert "<b>x</b>" not in (tmp_path / "out/audit.html").read_text()


def test_raw_pixels_and_codes_of_them_are_audited_alike(small, tmp_path):
    half = np.arange(32)[:, None] < np.full(32, 16)
    found = [
        audited(
            small[1],
            store_of(tmp_path / name, [LABEL], valid=[half], encoding=name),
            tmp_path / f"out-{name}",
            maps=False,
        )
        for name in ("raw", "uint8")
    ]
    assert found[0]["confusion"] == found[1]["confusion"]
    for one, other in zip(*(each["classes"] for each in found), strict=True):
        assert one["mean_confidence"] == pytest.approx(other["mean_confidence"], rel=1e-3)


def test_a_full_disk_is_a_clear_line_and_leaves_no_table(tmp_path):
    (tmp_path / "part").symlink_to("/dev/full")
    tiles = Tiles(tmp_path / "part")
    tiles.add(0, 0, dict.fromkeys(COLUMNS, "x") | {"flagged": 1, "mean_confidence": 0.5})
    with pytest.raises(ValueError, match="tiles.csv: cannot be written .No space left"):
        tiles.finish(tmp_path / "tiles.csv")
    assert not (tmp_path / "tiles.csv").exists()


def test_not_one_label_is_a_clear_line(small, tmp_path):
    empty = store_of(tmp_path / "store", [np.full((32, 32), IGNORE)])
    with pytest.raises(ValueError, match="not one of its 1,024 pixels has a label to judge .1,024 unlabelled"):
        audited(small[1], empty, tmp_path / "out", limit=None)
    assert not (tmp_path / "out/audit.json").exists()


def test_what_lies_in_a_pixel_without_image_data_changes_nothing_elsewhere(small, tmp_path):
    half = np.arange(32)[:, None] < np.full(32, 16)
    found = []
    for name, label in (("a", LABEL), ("b", np.where(half, LABEL, 3))):
        store = store_of(tmp_path / name, [label], valid=[half])
        found.append(audited(small[1], store, tmp_path / f"out-{name}", limit=None, maps=False)["classes"])
    assert found[0] == found[1]


def test_a_network_of_one_modality(store, tmp_path):
    network(store, tmp_path / "model", {"model": {"fusion": {"kind": "single", "modality": "s2"}}})
    found = audited(tmp_path / "model", store, tmp_path / "out")
    import rasterio

    with rasterio.open(next((tmp_path / "out/maps").glob("*.tif"))) as file:
        names = list(file.descriptions)
        assert (file.read(names.index("disagreement") + 1) == 255).all()
        assert names[-1] == "label confidence s2"
    assert found["model"]["modalities"] == ["s2"]
    with pytest.raises(ValueError, match="--modalities s1: .*knows s2"):
        audited(tmp_path / "model", store, tmp_path / "other", modalities=("s1",))


def test_one_modality_of_two_can_be_asked(model, store, tmp_path):
    found = audited(model, store, tmp_path / "out", modalities=("s1",), maps=False)
    assert list(found["truth"]["auroc"]) == ["joint", "s1"]
    assert found["truth"]["auroc"]["joint"] == pytest.approx(found["truth"]["auroc"]["s1"], abs=1e-3)


def test_what_does_not_fit_is_refused_with_both_sides_named(small, store, model, worlds, tmp_path):
    three, its = small
    with pytest.raises(ValueError, match=r"lacks B1, .*holds B4, B3, B2"):
        Auditor.open(model, three)
    lone = store_of(tmp_path / "lone", [LABEL], bands={"s2": S2})
    with pytest.raises(ValueError, match="has no modality 's1'; it holds s2"):
        Auditor.open(its, lone)
    osm = store_of(tmp_path / "osm", [LABEL], scheme="osm")
    with pytest.raises(ValueError, match=r"answers with classes of Dynamic World .*are of OpenStreetMap, 13 classes"):
        Auditor.open(its, osm)
    other = PatchStore.open(worlds[0])
    other.contracts = other.contracts | {"s2": other.contract("s2").model_copy(update={"product": "Sentinel-2 L2A"})}
    with pytest.raises(ValueError, match=r"s2 product differ: .*Sentinel-2 L2A.*Sentinel-2 L1C"):
        Auditor.open(model, other)
    with pytest.raises(ValueError, match="--split rain: .*has train"):
        audited(model, store, tmp_path / "out", splits=("rain",))
    with pytest.raises(ValueError, match=r"no such file; an audit needs the whole network"):
        Auditor.open(tmp_path / "absent", store)
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"no segmenter.safetensors; an audit needs the whole network"):
        Auditor.open(tmp_path / "run", store)
    assert not (tmp_path / "out").exists()


def test_bands_are_found_by_name_in_whatever_order_the_store_has_them(small, tmp_path):
    _, model = small
    turned = store_of(tmp_path / "turned", [LABEL], bands={"s1": ("VV", "VH"), "s2": ("B2", "B4", "B3")})
    auditor, wanted = Auditor.open(model, turned), ("B4", "B3", "B2")
    assert auditor.model.bands("s2") == wanted
    batch = read(turned, groups(turned, config())[0], Wanted.of(turned, {"s1": ("VV", "VH"), "s2": wanted}))
    assert torch.equal(
        batch.images["s2"], read(turned, groups(turned, config())[0], Wanted.of(turned)).images["s2"][:, [1, 2, 0]]
    )


def test_labels_of_another_scheme_are_judged_through_the_class_map(small, tmp_path):
    """DFC2020 knows no snow; a network of Dynamic World answers its eight classes."""
    store = store_of(tmp_path / "dfc", [LABEL % 8], scheme="dfc2020")
    auditor = Auditor.open(small[1], store)
    assert auditor.answers.tolist() == list(range(8))
    batch = read(store, groups(store, config())[0], Wanted.of(store))
    torch.testing.assert_close(auditor.logits(batch)["s2"].exp().sum(1), torch.ones(1, 32, 32))
    assert audited(small[1], store, tmp_path / "out", maps=False)["store"]["unanswered"] == []


def test_a_limit_takes_so_many_from_all_over_the_store(store):
    few = groups(store, config(limit=20, seasons="all"))
    assert sum(group.rows for group in few) == 20
    assert len({group.block for group in few}) > 1
    assert groups(store, config(limit=20, seasons="all")) == few
    assert sum(group.rows for group in groups(store, config(limit=None, seasons="one"))) == store.places("train")


def test_a_limit_ends_within_a_row_group(tmp_path):
    store = store_of(tmp_path / "store", [LABEL] * 6)
    assert sorted(group.rows for group in groups(store, config(limit=4))) == [1, 3]


def test_what_was_kept_is_what_the_network_said(model, store, tmp_path):
    auditor, todo = Auditor.open(model, store), groups(store, config(limit=3))
    walk.look_at(auditor, todo, tmp_path, 2, lambda line: None)
    batch = read(store, todo[0], Wanted.of(store, clean=True))
    kept, looked = walk.seen(tmp_path, todo[0], auditor, auditor.objective.enhancement), auditor.look(batch)
    np.testing.assert_array_equal(kept.best, looked.best)
    f1, f2 = (decoded(looked.own[name]) for name in ("s1", "s2"))
    np.testing.assert_allclose(kept.joint, (f1 * (1 + f2) / 2 + f2 * (1 + f1) / 2) / 2, rtol=1e-5)
    (tmp_path / f"{todo[0].name}.parquet").write_bytes(b"torn")
    with pytest.raises(ValueError, match="cannot be read .*the same command looks again"):
        walk.seen(tmp_path, todo[0], auditor, auditor.objective.enhancement)
