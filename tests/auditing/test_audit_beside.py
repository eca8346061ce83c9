"""Who else is asked: an independent map, cleanlab; and the verb itself."""

import sys

import numpy as np
import pytest
from audited import config, network, store_of

from cromss.audit import main
from cromss.auditing import second_opinion
from cromss.auditing.page import summary
from cromss.auditing.reference import Reference, common
from cromss.auditing.run import audit
from cromss.data.store import PatchStore
from cromss.landcover import DYNAMIC_WORLD, IGNORE, OSM, TERRAMESH

DRAW = np.random.default_rng(3)
LABELS = [DRAW.integers(0, 9, (32, 32)) for _ in range(3)]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    store = store_of(folder / "store", LABELS)
    network(store, folder / "model")
    return store, folder / "model"


def with_reference(given, reference, out):
    return audit(given[1], given[0], out, config(limit=None, maps=False), reference=reference, cleanlab=False, say=str)


def test_a_reference_of_the_same_labels_finds_nothing_wrong(given, tmp_path):
    found = with_reference(given, given[0], tmp_path / "out")["reference"]
    assert (found["pixels"], found["rate"], found["precision"]) == (3 * 1024, 0, 0)


def test_labels_are_compared_in_the_references_scheme(given, tmp_path):
    """Grass and shrub are both rangeland; a quarter is changed; one patch is another season of its place."""
    table, _, _ = common(DYNAMIC_WORLD, TERRAMESH)
    maps = [table[label] for label in LABELS]
    for one in maps:
        one[:16, :16] = (one[:16, :16] + 1) % 8
    maps[1][20:] = IGNORE
    names = ["place-0/2021", "place-1/1999", "place-2/2021"]
    other = store_of(tmp_path / "other", maps, names=names, scheme="terramesh")
    found = with_reference(given, other, tmp_path / "out")
    assert found["reference"]["pixels"] == 3 * 1024 - 12 * 32
    assert found["reference"]["rate"] == pytest.approx(3 * 256 / found["reference"]["pixels"])
    assert (found["reference_store"]["scheme"], found["reference_store"]["patches"]) == ("terramesh", 3)


def test_a_reference_of_some_of_the_patches_says_so(given, tmp_path):
    other = store_of(tmp_path / "other", LABELS[:2])
    found = with_reference(given, other, tmp_path / "out")
    assert [found["reference_store"][key] for key in ("patches", "absent", "elsewhere")] == [2, 1, 0]
    assert "it has 2 of the patches; 1 are not in it" in summary(found)


def test_the_map_between_two_schemes_goes_whichever_way_is_known():
    there, same, scheme = common(DYNAMIC_WORLD, TERRAMESH)
    assert (scheme, there[2], there[5], there[IGNORE]) == (TERRAMESH, 7, 7, IGNORE)
    back, other, scheme = common(TERRAMESH, DYNAMIC_WORLD)
    assert (scheme, same.tolist(), back.tolist(), other.tolist()) == (
        TERRAMESH,
        back.tolist(),
        same.tolist(),
        there.tolist(),
    )
    with pytest.raises(ValueError, match="how dynamic-world and osm are read in each other"):
        common(DYNAMIC_WORLD, OSM)


def test_a_reference_of_other_ground_other_names_or_other_size_is_refused(given, tmp_path):
    names = [f"place-{number}/2021" for number in range(3)]
    moved = store_of(tmp_path / "moved", LABELS[::-1], names=names, crs="EPSG:32633")
    with pytest.raises(ValueError, match="holds none of the audited patches .3 have the same name but lie elsewhere"):
        with_reference(given, moved, tmp_path / "a")
    small = store_of(tmp_path / "small", [one[:24, :24] for one in LABELS], size=(24, 24))
    with pytest.raises(ValueError, match="patches of 24 x 24 pixels, those of .* have 32 x 32"):
        Reference(small, given[0])


def test_flags_of_a_class_that_the_network_does_not_know_are_told_apart(given, tmp_path):
    found = with_reference(given, given[0], tmp_path / "out")
    knowing = found | {"classes": [row | {"mean_confidence": 0.5} for row in found["classes"]]}
    assert "note " not in summary(knowing)
    knowing["classes"][4] |= {"mean_confidence": 0.1, "flagged": found["flagged"]["pixels"]}
    assert "hardly a label is believed of crops (mean F' 0.1), 100% of the flags" in summary(knowing)


def test_cleanlab_scores_the_given_label_as_its_own_definition_says():
    pytest.importorskip("cleanlab")
    draw = np.random.default_rng(0)
    p = draw.dirichlet(np.ones(4), 500).astype(np.float32)
    labels = draw.integers(0, 3, 500).astype(np.uint8)  # the fourth class is never given
    scores, flags = second_opinion._cleanlab(labels, p)
    np.testing.assert_allclose(scores, p[np.arange(500), labels] / p.sum(1), rtol=1e-5)
    # confident learning: sure of another class by that class's mean confidence, and more than of the given one
    wanted = p.argmax(1) != labels
    assert (flags <= wanted).all()
    assert 0 < flags.sum() < 500


@pytest.mark.parametrize("limit", [second_opinion.LIMIT, 4 * 9 * 1024])
def test_cleanlab_and_we_rank_alike_on_what_it_can_hold(given, tmp_path, limit, monkeypatch):
    pytest.importorskip("cleanlab")
    monkeypatch.setattr(second_opinion.compare, "__defaults__", (limit,))
    found = audit(
        given[1], given[0], tmp_path / "out", config(limit=None, maps=False), reference=given[0], cleanlab=True, say=str
    )
    told = found["cleanlab"]
    assert told["pixels"] == (3 * 1024 if limit > 40_000 else 1024)
    assert told["spearman"] > 0.95
    assert told["both"] <= min(told["ours"], told["theirs"])
    assert set(told["precision"]) == {"reference"}


def test_cleanlab_is_asked_about_the_pixels_that_are_judged(given, tmp_path):
    pytest.importorskip("cleanlab")
    half = np.arange(32)[:, None] < np.full(32, 16)
    label = np.where(np.arange(32)[:, None] < 4, IGNORE, LABELS[0])
    store = store_of(tmp_path / "store", [label], valid=[half])
    found = audit(given[1], store, tmp_path / "out", config(maps=False), cleanlab=True, say=str)
    assert found["cleanlab"]["pixels"] == found["pixels"]["judged"] == 12 * 32


def test_the_rank_correlation_and_the_overlap_by_hand():
    assert second_opinion._spearman(np.array([1.0, 2, 3]), np.array([10.0, 20, 90])) == pytest.approx(1)
    assert second_opinion._spearman(np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])) == pytest.approx(-1)
    assert second_opinion._spearman(np.array([1.0, 1]), np.array([1.0, 2])) is None
    assert second_opinion._least(np.array([5, 1, 3, 1]), 2).tolist() == [False, True, False, True]


def test_without_cleanlab_the_extra_is_named(given, tmp_path, monkeypatch):
    monkeypatch.setattr(second_opinion, "installed", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'cromss\[audit\]'"):
        audit(given[1], given[0], tmp_path / "out", config(), cleanlab=True, say=str)
    assert audit(given[1], given[0], tmp_path / "out", config(maps=False), say=str)["cleanlab"] is None


def test_the_verb_tells_and_goes_on(worlds, tmp_path, capsys):
    network(PatchStore.open(worlds[0]), tmp_path / "run")
    words = ["--model", str(tmp_path / "run"), "--data", str(worlds[0]), "--out", str(tmp_path / "out"), "--limit", "4",
             "--seasons", "one", "--no-cleanlab", "--device", "cpu"]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr()
    assert "looked at 4/4 patches" in said.err
    assert "trained on these very labels" in said.err
    for line in ("labels ", "flagged ", "weights ", "classes ", "worst 1 ", "truth ", "page "):
        assert f"\n{line}" in f"\n{said.out}"
    assert main(words) == 0
    again = capsys.readouterr()
    assert (again.out, again.err) == (said.out, "")


def test_the_verb_refuses_in_one_line(worlds, tmp_path, capsys):
    network(PatchStore.open(worlds[0]), tmp_path / "run")
    words = ["--model", str(tmp_path / "run"), "--data", str(worlds[0]), "--out", str(tmp_path / "out")]
    for option, line in (
        (["--flagged", "5"], "flagged"),
        (["--split", "x"], "--split x"),
        (["--alpha", "nan"], "alpha"),
    ):
        assert main(words + option) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert line in said[0]
    assert not (tmp_path / "out").exists()


def test_help_comes_without_the_heavy_libraries():
    import subprocess

    code = (
        "import sys\nfrom cromss.audit import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'timm', 'cleanlab', 'matplotlib', 'rasterio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for option in ("--reference", "--confident", "--no-maps", "--no-cleanlab", "--seasons"):
        assert option in done.stdout
