"""Amounts: what a configuration asks for, by hand."""

import itertools

import numpy as np
import pytest
from tiny import TINY

from cromss.config import resolve
from cromss.costs.amounts import amounts, expected_views, pixel_bytes
from cromss.data.augment import AugmentConfig
from cromss.data.store import PatchStore


@pytest.fixture(scope="module")
def stores(worlds):
    return tuple(map(PatchStore.open, worlds))


def test_a_pretraining_is_its_plan(stores):
    config = resolve(TINY, {"probe": {"every": 2}, "scaling": {"checkpoint_epochs": 2}})
    todo = amounts(config, *stores)
    held = 1  # 28 places in 28 folds, one validates
    assert (todo.places, todo.validated, todo.epochs) == (27, held, 3)
    assert todo.steps == 3 * 27 // 8
    assert todo.probes == 2  # after the second epoch, and at the end
    assert todo.checkpoints == 2
    assert pixel_bytes(stores[0]) == 32 * 32 * (2 + 13 + 1)
    assert todo.place_bytes > 32 * 32 * 16  # and checksums, names, the true labels
    assert todo.epoch_bytes == 27 * todo.place_bytes
    assert todo.store_bytes == pytest.approx(4 * todo.epoch_bytes)  # four seasons


def test_judging_both_ways_is_two_trainings(stores):
    once = amounts(resolve(TINY), *stores).transfers["s2", "frozen"]
    twice = amounts(resolve(TINY, {"transfer": {"protocol": {"kind": "two_fold"}}}), *stores).transfers["s2", "frozen"]
    assert (once.trainings, once.steps, once.drawn, once.scored) == (1, 2 * 16 // 8, 32, 8)
    assert (twice.trainings, twice.steps, twice.drawn, twice.scored) == (2, 4 + 2, 32 + 16, 24)


def test_random_weights_are_only_judged_and_nothing_is_judged_without_a_store(stores):
    judged = amounts(resolve(TINY, {"pretraining": {"kind": "random"}, "transfer": {"repeats": 3}}), *stores)
    assert (judged.steps, judged.epochs, judged.probes, judged.downstream_runs) == (0, 0, 0, 6)
    alone = amounts(resolve(TINY), stores[0], None)
    assert (alone.probes, alone.downstream_runs) == (0, 0)
    assert alone.steps > 0


@pytest.mark.parametrize(
    ("augment", "epochs", "views"),
    [
        ({"flip": 0, "rotate": 0}, 50, 1),
        ({"flip": 0.5, "rotate": 0}, 1, 1),
        ({"flip": 0.5, "rotate": 0}, 2, 4 * (1 - 0.75**2)),
        ({"flip": 0, "rotate": 0.5}, 1, 1),
        ({"flip": 0.5, "rotate": 0.2}, 10_000, 8),
        ({"flip": 1, "rotate": 0}, 50, 1),
    ],
)
def test_a_place_has_eight_views_at_most_and_few_at_first(augment, epochs, views):
    assert expected_views(AugmentConfig(crop=None, **augment), epochs) == pytest.approx(views)


def test_views_are_told_apart_as_pictures_are():
    flip, rotate, epochs = 0.3, 0.7, 5
    picture, chances = np.arange(9).reshape(3, 3), {}
    for rows, columns, turn in itertools.product((False, True), (False, True), range(4)):
        view = picture[::-1] if rows else picture
        view = view[:, ::-1] if columns else view
        chance = (flip if rows else 1 - flip) * (flip if columns else 1 - flip)
        chance *= rotate / 3 if turn else 1 - rotate
        key = np.rot90(view, turn).tobytes()
        chances[key] = chances.get(key, 0) + chance
    assert len(chances) == 8
    expected = sum(1 - (1 - chance) ** epochs for chance in chances.values())
    assert expected_views(AugmentConfig(crop=None, flip=flip, rotate=rotate), epochs) == pytest.approx(expected)
