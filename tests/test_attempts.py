"""On how many workers a pretraining goes on: as many as there are, as few as are allowed."""

import contextlib
import time

import pytest
from tiny import TINY

from cromss import attempts
from cromss.attempts import GROWN, alone_asked, gathered, growing, sizes
from cromss.config import resolve
from cromss.leaving import OVERTAKEN, ask, asked, take_over
from cromss.ray_session import Share

HALVES = Share(4, 0.5, 0, 0.0, 1)  # four workers of half a CPU: all that the test session's two CPUs have


def config_of(least, lanes=4):
    scaling = {"num_workers": None, "min_workers": least}
    return resolve(TINY, {"data": {"lanes": lanes}, "scaling": scaling})


@pytest.mark.parametrize(
    ("least", "lanes", "valid"),
    [(None, 8, [4]), (1, 8, [4, 2, 1]), (2, 4, [4, 2]), (3, 8, [4]), (9, 8, [4]), (1, 24, [4, 3, 2, 1])],
)
def test_sizes_are_the_divisors_of_the_lanes_from_all_down_to_the_fewest(least, lanes, valid):
    config = config_of(least).model_copy(update={"data": config_of(least).data.model_copy(update={"lanes": lanes})})
    assert sizes(config, HALVES) == valid


def test_more_workers_at_least_than_at_most_are_refused():
    with pytest.raises(ValueError, match="scaling.min_workers=3: must be at most scaling.num_workers=2"):
        resolve(TINY, {"scaling": {"num_workers": 2, "min_workers": 3}})


@contextlib.contextmanager
def taken(cpus):
    """So many CPUs are somebody else's; what it yields gives them back."""
    from ray.util import placement_group, remove_placement_group

    group = placement_group([{"CPU": cpus}])
    try:
        assert group.wait(60)
        yield lambda: remove_placement_group(group)
    finally:
        remove_placement_group(group)


def test_all_begin_where_there_is_room_at_once(ray_session):
    began = time.monotonic()
    assert gathered(HALVES, [4, 2, 1], patience=10.0, say=pytest.fail) == 4
    assert time.monotonic() - began < 20


def test_after_the_patience_the_most_that_find_room_begin(ray_session):
    said = []
    with taken(1.5):
        assert gathered(HALVES, [4, 2, 1], patience=0.0, say=said.append) == 1
    assert said == ["no room for 4 workers after 0 min; 1 begin"]


def test_room_for_the_missing_ones_is_asked_for_and_told_when_it_is_there(ray_session, tmp_path):
    begun = tmp_path / "begun"
    begun.touch()
    with taken(2.0) as given_back, growing(1, config_of(1), HALVES, tmp_path, begun):
        time.sleep(2)
        assert asked([tmp_path]) == ""
        given_back()
        for _ in range(300):
            if asked([tmp_path]):
                break
            time.sleep(0.1)
        assert asked([tmp_path]) == GROWN
    assert asked([tmp_path]) == ""  # the next attempt has them


def test_no_room_is_taken_from_an_attempt_whose_workers_are_not_placed_yet(ray_session, tmp_path):
    with growing(1, config_of(1), HALVES, tmp_path, tmp_path / "begun"):
        time.sleep(3)
        with taken(2.0):  # all of it, for the workers
            assert asked([tmp_path]) == ""


def test_who_is_complete_asks_for_nobody(ray_session, tmp_path):
    begun = tmp_path / "begun"
    begun.touch()
    with growing(4, config_of(1), HALVES, tmp_path, begun), taken(2.0):
        assert asked([tmp_path]) == ""
    assert not begun.exists()


def test_workers_look_at_every_folder_where_they_may_be_asked_and_at_who_holds_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "LOOK", 0.0)
    own, sweep = tmp_path / "trial", tmp_path / "sweep"
    own.mkdir()
    sweep.mkdir()
    leave = alone_asked({"out": str(own), "leave": [str(own), str(sweep)], "holder": take_over(own)})
    assert leave(1) == ""
    ask(sweep, "SIGTERM")
    assert leave(2) == "SIGTERM"
    take_over(own)
    assert leave(3) == OVERTAKEN
