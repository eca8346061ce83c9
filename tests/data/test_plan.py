import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cromss.data.plan import Plan, every_row
from cromss.data.store import Blocks

DIVISORS = {1: [1], 2: [1, 2], 4: [1, 2, 4], 6: [1, 2, 3, 6], 8: [1, 2, 4, 8]}


def blocks_of(sizes, n=4, split="train", folds=None) -> Blocks:
    sizes = np.array(sizes)
    n = np.broadcast_to(n, sizes.shape).astype(np.int64)
    folds = np.zeros(len(sizes), np.int64) if folds is None else np.array(folds)
    first = np.cumsum(n) - n
    return Blocks(np.zeros(len(sizes), np.int64), first, n, sizes, np.full(len(sizes), split), folds)


def lane_rows(plan: Plan, lanes: range, start: int = 0) -> dict[int, list[tuple]]:
    """Per lane every row (epoch, block, slot, row of the row group) in order."""
    rows = {lane: [] for lane in lanes}
    for window in plan.windows(lanes, start, plan.count(lanes)):
        sizes = plan.blocks.rows[window.blocks]
        owner = np.repeat(np.arange(len(sizes)), sizes)
        place = np.concatenate([np.arange(size) for size in sizes])
        if not start:
            assert window.first == len(rows[window.lane])
        for j in window.order:
            block, slot = window.blocks[owner[j]], window.slots[owner[j]]
            rows[window.lane].append((window.epoch, int(block), int(slot), int(place[j])))
    return rows


def step_rows(plan: Plan, step: int, rank: int = 0, world: int = 1) -> list[tuple]:
    rows = lane_rows(plan, plan.lanes_of(rank, world))
    share = plan.rows_per_lane
    return [row for lane in rows.values() for row in lane[step * share : (step + 1) * share]]


plans = st.builds(
    dict,
    sizes=st.lists(st.sampled_from([16, 16, 16, 7, 3, 1]), min_size=1, max_size=40),
    lanes=st.sampled_from(sorted(DIVISORS)),
    per_lane=st.integers(1, 5),
    window=st.integers(1, 5),
    epochs=st.integers(1, 12),
    seed=st.integers(0, 99),
    seasons=st.sampled_from(["random", "cycle"]),
    n=st.sampled_from([1, 2, 4]),
)


def build(sizes, n, lanes, per_lane, **options) -> Plan:
    """The plan; hypothesis looks elsewhere where the run is too short for a batch."""
    try:
        return Plan(blocks_of(sizes, n), batch_size=lanes * per_lane, lanes=lanes, **options)
    except ValueError as error:
        assume("fill no batch" not in str(error))
        raise


@given(plans)
@settings(max_examples=60, deadline=None)
def test_every_epoch_has_every_place_once_in_one_slot_a_block(options):
    plan = build(**options)
    rows = lane_rows(plan, range(plan.lanes))
    seen = Counter((epoch, block, place) for lane in rows.values() for epoch, block, _, place in lane)
    assert seen == Counter(
        (epoch, block, place)
        for epoch in range(plan.epochs)
        for block, size in enumerate(options["sizes"])
        for place in range(size)
    )
    slots = {(epoch, block): slot for lane in rows.values() for epoch, block, slot, _ in lane}
    assert all(0 <= slot < options["n"] for slot in slots.values())
    assert len({row[:3] for lane in rows.values() for row in lane}) == len(slots)


@given(plans)
@settings(max_examples=60, deadline=None)
def test_lanes_never_drift_apart_by_more_than_a_block_of_each_size(options):
    plan = build(**options)
    rows = lane_rows(plan, range(plan.lanes))
    for epoch in range(plan.epochs):
        totals = [sum(row[0] <= epoch for row in lane) for lane in rows.values()]
        assert max(totals) - min(totals) <= sum(set(options["sizes"]))


@given(plans)
@settings(max_examples=60, deadline=None)
def test_all_rows_are_in_a_step_or_counted_as_dropped(options):
    plan = build(**options)
    shortest = min(len(lane) for lane in lane_rows(plan, range(plan.lanes)).values())
    assert plan.steps == shortest // plan.rows_per_lane >= 1
    assert plan.steps * plan.batch_size + plan.dropped == plan.epochs * sum(options["sizes"])


@given(plans, st.data())
@settings(max_examples=60, deadline=None)
def test_the_rows_of_a_step_are_the_same_for_every_number_of_workers(options, data):
    plan = build(**options)
    step = data.draw(st.integers(0, plan.steps - 1))
    alone = step_rows(plan, step)
    for world in DIVISORS[plan.lanes]:
        assert [row for rank in range(world) for row in step_rows(plan, step, rank, world)] == alone


@given(plans, st.data())
@settings(max_examples=60, deadline=None)
def test_a_resumed_stream_starts_with_the_window_that_holds_its_first_row(options, data):
    plan = build(**options)
    world = data.draw(st.sampled_from(DIVISORS[plan.lanes]))
    lanes = plan.lanes_of(data.draw(st.integers(0, world - 1)), world)
    step = data.draw(st.integers(0, plan.steps - 1))
    row = step * plan.rows_per_lane
    everything = list(plan.windows(lanes, 0, plan.count(lanes)))
    needed = [w.first + len(w.order) > row for w in everything]
    first = plan.first_window(lanes, step)
    assert first == needed.index(True)
    tail = list(plan.windows(lanes, first, plan.count(lanes)))
    assert [(w.lane, w.epoch, w.first) for w in tail] == [(w.lane, w.epoch, w.first) for w in everything[first:]]
    for found, wanted in zip(tail, everything[first:], strict=True):
        for name in ("blocks", "slots", "order"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_cycle_sees_every_slot_of_every_block_once_in_n_epochs():
    plan = Plan(blocks_of([16] * 12, n=[1, 2, 4] * 4), seed=3, epochs=8, batch_size=16, lanes=4, seasons="cycle")
    slots = {(e, b): s for lane in lane_rows(plan, range(4)).values() for e, b, s, _ in lane}
    for block in range(12):
        n = (1, 2, 4)[block % 3]
        for start in range(0, 8, n):
            assert sorted(slots[epoch, block] for epoch in range(start, start + n)) == list(range(n))


def test_random_seasons_draw_every_slot_equally_often():
    plan = Plan(blocks_of([16] * 100), seed=0, epochs=40, batch_size=64, seasons="random")
    slots = {(e, b): s for lane in lane_rows(plan, range(8)).values() for e, b, s, _ in lane}
    counts = np.bincount(list(slots.values()))
    assert len(slots) == 4000
    assert abs(counts - 1000).max() < 5 * np.sqrt(4000 * 3 / 16)


def test_epochs_and_seeds_have_orders_of_their_own():
    plan = Plan(blocks_of([16] * 16), seed=0, epochs=2, batch_size=16)
    rows = [row for lane in lane_rows(plan, range(8)).values() for row in lane]
    first, second = ([row[1:] for row in rows if row[0] == epoch] for epoch in (0, 1))
    assert first != second
    other = Plan(blocks_of([16] * 16), seed=1, epochs=2, batch_size=16)
    assert lane_rows(other, range(8)) != lane_rows(plan, range(8))


def test_the_rows_of_a_window_are_mixed():
    plan = Plan(blocks_of([16] * 32), seed=0, epochs=1, batch_size=8, window=4)
    [window] = plan.windows(range(1), 0, 1)
    assert sorted(window.order) == list(range(64))
    assert len(set(window.order[:16] // 16)) == 4


def test_the_epoch_of_a_step_is_the_floor_of_t_B_over_N_by_hand():
    plan = Plan(blocks_of([16] * 3), seed=0, epochs=4, batch_size=32, lanes=1)  # N = 48
    assert [plan.epoch_of(step) for step in range(6)] == [0, 0, 1, 2, 2, 3]
    assert [plan.first_step(epoch) for epoch in range(5)] == [0, 2, 3, 5, 6]
    assert plan.steps == 6
    assert plan.dropped == 0


def test_the_last_of_a_hundred_epochs_of_a_hundred_million_patches_is_found_without_listing_the_others():
    blocks = blocks_of([16] * 1_562_500)
    plan = Plan(blocks, seed=0, epochs=100, batch_size=4096)
    lanes = plan.lanes_of(0, 1)
    assert plan.steps == 100 * 25_000_000 // 4096
    number = plan.first_window(lanes, plan.steps - 1)
    [window] = plan.windows(lanes, number, number + 1)
    assert window.epoch == 99


def test_folds_and_splits_are_kept_apart():
    blocks = blocks_of([4] * 6, folds=[0, 0, 1, 1, 2, 2])
    plan = Plan(blocks, seed=0, epochs=3, batch_size=4, lanes=1, exclude_folds=[1])
    assert {row[1] for row in lane_rows(plan, range(1))[0]} == {0, 1, 4, 5}
    plan = Plan(blocks, seed=0, epochs=3, batch_size=4, lanes=1, folds=[2])
    assert {row[1] for row in lane_rows(plan, range(1))[0]} == {4, 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 20}, r"lanes=8: must divide the batch size 20; valid: 1, 2, 4, 5, 10, 20"),
        ({"split": "trian"}, r"split 'trian': the store has none; did you mean 'train'\?"),
        ({"exclude_folds": [7]}, r"fold 7: the split 'train' has the folds 0 to 1"),
        ({"exclude_folds": [0, 1]}, r"no fold is left"),
        ({"batch_size": 512}, r"fill no batch of 512"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_the_way_out(change, message):
    options = {"seed": 0, "epochs": 1, "batch_size": 16} | change
    with pytest.raises(ValueError, match=message):
        Plan(blocks_of([16] * 10, folds=[0, 1] * 5), **options)


def test_workers_that_cannot_share_the_lanes_are_told_how_many_could():
    plan = Plan(blocks_of([16] * 10), seed=0, epochs=1, batch_size=16)
    with pytest.raises(ValueError, match="3 workers cannot share 8 lanes equally; valid: 1, 2, 4, 8"):
        plan.lanes_of(0, 3)


@given(st.lists(st.integers(1, 16), min_size=1, max_size=20), st.integers(1, 5), st.sampled_from([None, 0, 1, 5]))
@settings(max_examples=50, deadline=None)
def test_evaluation_sees_every_row_once_over_all_workers(sizes, world, slot):
    blocks = blocks_of(sizes, n=[1, 2, 4][len(sizes) % 3])
    seen = Counter()
    for rank in range(world):
        for window in every_row(blocks, split="train", slot=slot, rank=rank, world=world):
            assert window.order.tolist() == list(range(sizes[window.blocks[0]]))
            seen.update((window.blocks[0], window.slots[0], row) for row in window.order)
    slots = (lambda n: range(n)) if slot is None else (lambda n: [slot % n])
    assert seen == Counter(
        (block, s, row) for block, size in enumerate(sizes) for s in slots(blocks.n[block]) for row in range(size)
    )


def test_a_plan_of_many_patches_is_small_and_does_not_grow_with_the_epochs():
    from cromss.benchmarks.plan import imagined

    blocks = imagined(6_400_000, seasons=4)
    tracemalloc.start()
    plan = Plan(blocks, seed=0, epochs=100, batch_size=512)
    lanes, held = plan.lanes_of(0, 1), []
    for epoch in (*range(20), 50, 98, 99):
        next(plan.windows(lanes, plan.count(lanes, epoch), plan.count(lanes)))
        held.append(tracemalloc.get_traced_memory()[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**30 * 6.4 / 100  # a share of the 1 GiB that 100 million patches may take
    assert held[-1] < 1.05 * held[19]  # two epochs are held, however many there are
