import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cromss.journal import Entry, Journal, read_journal, read_trials, write_json


def test_what_was_logged_is_read_back(tmp_path: Path) -> None:
    with Journal(tmp_path, "a") as journal:
        journal.log(1, {"train/loss": 2.5}, epoch=0.5)
        journal.append(Entry(2, 1.0, 10.0, {"train/loss": 2.0, "val/loss": 3.0}), Entry(3, None, 11.0, {"x": 1}))
    (runs,) = read_journal(tmp_path).values()
    assert [(e.step, e.epoch, e.metrics) for e in runs] == [
        (1, 0.5, {"train/loss": 2.5}),
        (2, 1.0, {"train/loss": 2.0, "val/loss": 3.0}),
        (3, None, {"x": 1.0}),
    ]


def test_a_line_is_on_disk_before_the_journal_is_closed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    journal.log(7, {"x": 1.0})
    assert read_journal(tmp_path)["a"][0].step == 7
    journal.close()


def test_a_resumed_run_overrules_the_steps_it_repeats(tmp_path: Path) -> None:
    """Killed at step 3 after a checkpoint at step 1: the second process writes steps 2 and 3 again."""
    with Journal(tmp_path, "a") as first:
        for step in (1, 2, 3):
            first.log(step, {"loss": 10.0 + step, "probe": 1.0})
    with Journal(tmp_path, "a") as second:
        second.log(2, {"loss": 20.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001.jsonl", "000002.jsonl"]
    assert [e.metrics["loss"] for e in read_journal(tmp_path)["a"]] == [11.0, 20.0, 13.0]
    assert read_journal(tmp_path)["a"][1].metrics["probe"] == 1.0  # not written again, not lost


@given(cut=st.integers(0, 200))
def test_a_torn_tail_loses_its_own_line_only(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("torn")
    with Journal(folder, "a") as journal:
        for step in range(3):
            journal.append(Entry(step, 1.0, 5.0, {"loss": 1.0}))
    path = folder / "000001.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    complete = [json.loads(line)["step"] for line in whole[:cut].split(b"\n")[:-1]]
    found = [entry.step for entry in read_journal(folder).get("a", [])]
    assert found[: len(complete)] == complete
    assert len(found) <= len(complete) + 1  # the cut may fall just before a line's end, which loses nothing


def test_two_processes_of_one_trial_write_two_segments(tmp_path: Path) -> None:
    with Journal(tmp_path, "a") as one, Journal(tmp_path, "a/s2-frozen-0") as two:
        one.log(1, {"x": 1.0})
        two.log(1, {"x": 2.0})
    assert {run: entries[0].metrics["x"] for run, entries in read_journal(tmp_path).items()} == {
        "a": 1.0,
        "a/s2-frozen-0": 2.0,
    }


def test_an_unwritable_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/journal: the journal cannot be written"):
        Journal(tmp_path / "file" / "journal", "a")


def test_a_trial_without_a_readable_record_counts_as_running(tmp_path: Path) -> None:
    (tmp_path / "trials/a").mkdir(parents=True)
    (tmp_path / "trials/b").mkdir()
    (tmp_path / "trials/b/trial.json").write_text('{"status": "done", "ar')
    assert [(trial["key"], trial["status"]) for trial in read_trials(tmp_path)] == [("a", "running"), ("b", "running")]


def test_a_json_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    write_json(tmp_path / "x.json", {"a": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 2}
