"""Windows and batches: every turn once, the right context, the budget kept, and all of it a function of seed and step."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_windows
from torch import Tensor

from vrae.config import BatchConfig
from vrae.corpus.batches import Batch, Dropped, TrainingBatches, Window, Windows, collate
from vrae.corpus.prepared import Corpus, Split
from vrae.corpus.tokenizer import BOS, EOS, PAD, UNK
from vrae.errors import ConfigError, DataError

LIMIT = 12  # tokens of a target; the longest turns of the corpus have more
CONFIG = BatchConfig(tokens=150, max_turn_tokens=LIMIT, segment_turns=4)
CONTEXTS = pytest.mark.parametrize("context_turns", [0, 1, 3])

Example = tuple[tuple[tuple[int, ...], ...], tuple[int, ...], tuple[bool, ...]]  # context, target, same speaker


@pytest.fixture(scope="session")
def split(corpus: Corpus) -> Split:
    return corpus["train"]


def windows_of(split: Split, context_turns: int = 0, **settings: Any) -> Windows:
    return Windows(split, dataclasses.replace(CONFIG, **settings), context_turns)


def stored_dialogues(split: Split) -> list[list[tuple[tuple[int, ...], int]]]:
    """The turns (ids, speaker) of each dialogue."""
    turns = [(tuple(split.turn(i).tolist()), int(speaker)) for i, speaker in enumerate(split.speakers)]
    return [turns[start:end] for start, end in zip(split.dialogues[:-1], split.dialogues[1:], strict=True)]


def expected_examples(split: Split, context_turns: int, limit: int = LIMIT) -> list[Example]:
    """What there is to learn, by walking through the dialogues."""
    return [
        (
            tuple(ids[-limit:] for ids, _ in dialogue[max(place - context_turns, 0) : place]),
            target,
            tuple(speaker == other for _, other in dialogue[max(place - context_turns, 0) : place]),
        )
        for dialogue in stored_dialogues(split)
        for place, (target, speaker) in enumerate(dialogue)
        if len(target) <= limit
    ]


def examples_of(batch: Batch) -> list[Example]:
    """What the arrays of a batch say."""
    turns = [tuple(ids[:length].tolist()) for ids, length in zip(batch.turns_NT, batch.turn_lengths_N, strict=True)]
    assert all(turn[-1] == EOS for turn in turns)
    return [
        (
            tuple(turns[n][:-1] for n in batch.context_BK[b, :count]),
            turns[batch.target_B[b]][:-1],
            tuple(bool(bit) for bit in batch.same_speaker_BK[b, :count]),
        )
        for b, count in enumerate(batch.context_lengths_B.tolist())
    ]


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# The plan of an epoch


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@CONTEXTS
def test_an_epoch_holds_every_window_once(split: Split, context_turns: int, seed: int | None) -> None:
    windows = windows_of(split, context_turns)
    plan = windows.plan(None if seed is None else np.random.default_rng(seed))
    assert sorted(np.concatenate(plan)) == list(range(len(windows)))


@pytest.mark.parametrize("tokens", [52, 53, 97, 150, 1000, 10**6])
@CONTEXTS
def test_an_epoch_has_the_number_of_batches_that_was_foretold(split: Split, context_turns: int, tokens: int) -> None:
    windows = windows_of(split, context_turns, tokens=tokens)
    assert windows.batches_per_epoch == math.ceil(windows.tokens / tokens)
    for rng in [None, *map(np.random.default_rng, range(20))]:
        assert len(windows.plan(rng)) == windows.batches_per_epoch


@pytest.mark.parametrize("seed", range(5))
@CONTEXTS
def test_all_batches_but_one_hold_their_tokens_within_a_segment(split: Split, context_turns: int, seed: int) -> None:
    windows = windows_of(split, context_turns)
    segment = (CONFIG.segment_turns if context_turns else 1) * (LIMIT + 1)
    costs = [int(windows.cost_N[chosen].sum()) for chosen in windows.plan(np.random.default_rng(seed))]
    assert sum(costs) == windows.tokens
    assert sum(abs(cost - CONFIG.tokens) >= segment for cost in costs) <= 1
    assert max(costs) < CONFIG.tokens + segment


@pytest.mark.parametrize("seed", range(5))
def test_neighbouring_turns_stay_together_when_there_is_a_context(split: Split, seed: int) -> None:
    """So that their context turns are shared: at least half of the pairs of neighbours meet in a batch."""
    windows = windows_of(split, 3)
    batch_of = np.zeros(len(windows), np.int64)
    for number, chosen in enumerate(windows.plan(np.random.default_rng(seed))):
        batch_of[chosen] = number
    neighbours = (np.diff(windows.target_N) == 1) & (np.diff(windows.start_N) == 0)
    assert (np.diff(batch_of) == 0)[neighbours].mean() > 0.5


def test_no_pair_of_neighbours_is_always_parted(split: Split) -> None:
    """Where dialogues are cut changes from epoch to epoch: wherever two neighbours stand, they meet in most epochs."""
    windows = windows_of(split, 3)
    neighbours = (np.diff(windows.target_N) == 1) & (np.diff(windows.start_N) == 0)
    together = np.zeros(len(windows) - 1)
    for seed in range(40):
        batch_of = np.zeros(len(windows), np.int64)
        for number, chosen in enumerate(windows.plan(np.random.default_rng(seed))):
            batch_of[chosen] = number
        together += np.diff(batch_of) == 0
    place = windows.target_N - windows.start_N
    for start in range(CONFIG.segment_turns):
        standing_there = neighbours & (place[:-1] % CONFIG.segment_turns == start)
        assert together[standing_there].mean() > 0.6 * 40


@CONTEXTS
def test_short_and_long_batches_come_in_random_order(split: Split, context_turns: int) -> None:
    windows = windows_of(split, context_turns)
    longest = [windows.cost_N[chosen].max() for chosen in windows.plan(np.random.default_rng(0))]
    steps = np.sign(np.diff(longest))
    assert {-1, 1} <= set(steps)


@pytest.mark.parametrize("tokens", [52, 150, 1000])
@CONTEXTS
def test_the_order_of_an_epoch_is_that_of_a_sort_by_pool_and_length(split: Split, context_turns: int, tokens: int) -> None:
    """Written down once more, a segment at a time."""
    windows = windows_of(split, context_turns, tokens=tokens)
    rng = np.random.default_rng(4)
    size = CONFIG.segment_turns if context_turns else 1
    shift = int(rng.integers(size))
    segments: dict[tuple[int, int], list[int]] = {}
    for window, (target, start) in enumerate(zip(windows.target_N.tolist(), windows.start_N.tolist(), strict=True)):
        segments.setdefault((start, (target - start + shift) // size), []).append(window)
    drawn = list(segments.values())
    drawn = [drawn[i] for i in rng.permutation(len(drawn))]
    costs = [int(windows.cost_N[segment].sum()) for segment in drawn]
    pools = [(end - 1) // (64 * tokens) for end in np.cumsum(costs)]
    longest = [int(windows.cost_N[segment].max()) for segment in drawn]
    order = sorted(range(len(drawn)), key=lambda s: (pools[s], longest[s]))
    expected: dict[int, list[int]] = {}
    end = 0
    for s in order:
        end += costs[s]
        expected.setdefault((end - 1) // tokens, []).extend(drawn[s])
    plan = [list(expected.values())[i] for i in rng.permutation(len(expected))]
    assert [batch.tolist() for batch in windows.plan(np.random.default_rng(4))] == plan


@CONTEXTS
def test_windows_meet_others_in_every_epoch(split: Split, context_turns: int) -> None:
    windows = windows_of(split, context_turns)
    one, other = ({frozenset(chosen) for chosen in windows.plan(np.random.default_rng(seed))} for seed in (0, 1))
    assert len(one & other) < len(one) / 2


def test_without_shuffling_batches_go_from_short_to_long(split: Split) -> None:
    windows = windows_of(split)
    costs = np.concatenate([windows.cost_N[chosen] for chosen in windows.plan(None)])
    assert (np.diff(costs) >= 0).all()


def test_turns_of_a_batch_are_of_similar_length(split: Split) -> None:
    windows = windows_of(split)
    spread = [np.ptp(windows.cost_N[chosen]) for chosen in windows.plan(np.random.default_rng(0))]
    assert np.median(spread) <= 2 < np.ptp(windows.cost_N)


@CONTEXTS
def test_the_plan_is_a_function_of_the_seed(split: Split, context_turns: int) -> None:
    windows = windows_of(split, context_turns)
    plans = [np.concatenate(windows.plan(np.random.default_rng(seed))).tolist() for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


def test_batches_too_small_for_a_segment_are_refused(split: Split) -> None:
    needed = CONFIG.segment_turns * (LIMIT + 1)
    windows_of(split, 1, tokens=needed).plan(None)
    with pytest.raises(ConfigError, match=rf"batches\.tokens \({needed - 1}\) .*segment_turns \(4\) .*: {needed}"):
        windows_of(split, 1, tokens=needed - 1).plan(None)


# What is in a batch


@pytest.mark.parametrize("seed", [None, 0])
@CONTEXTS
def test_the_examples_are_the_turns_and_the_k_before_them(split: Split, context_turns: int, seed: int | None) -> None:
    windows = windows_of(split, context_turns)
    plan = windows.plan(None if seed is None else np.random.default_rng(seed))
    found = [example for chosen in plan for example in examples_of(windows.batch(chosen))]
    assert Counter(found) == Counter(expected_examples(split, context_turns))


def test_windows_stand_in_the_order_of_the_corpus(split: Split) -> None:
    windows = windows_of(split, 3)
    assert examples_of(windows.batch(np.arange(len(windows)))) == expected_examples(split, 3)


@CONTEXTS
def test_each_turn_is_in_a_batch_once(split: Split, context_turns: int) -> None:
    windows = windows_of(split, context_turns)
    batch = windows.batch(np.arange(len(windows)))
    used = {*windows.target_N}
    for target, start in zip(windows.target_N, windows.start_N, strict=True):
        used.update(range(max(target - context_turns, start), target))
    assert len(batch.turns_NT) == len(used)


def test_a_context_turn_over_the_limit_keeps_its_end(split: Split) -> None:
    longest = int(np.diff(split.turns).argmax())
    ids = tuple(split.turn(longest).tolist())
    assert len(ids) > LIMIT
    windows = windows_of(split, 1)
    following = int(np.flatnonzero(windows.target_N == longest + 1)[0])
    ((context,), _, _) = examples_of(windows.batch(np.array([following])))[0]
    assert context == ids[-LIMIT:]


@pytest.mark.parametrize("limit", [3, LIMIT, 1000])
def test_targets_over_the_limit_are_left_out_and_counted(split: Split, limit: int) -> None:
    windows = windows_of(split, max_turn_tokens=limit, tokens=10_000)
    lengths = np.diff(split.turns)
    assert windows.left_out == (lengths > limit).sum()
    assert len(windows) == (lengths <= limit).sum()
    assert windows.tokens == (lengths[lengths <= limit] + 1).sum()


def test_a_split_without_a_target_is_refused(split: Split) -> None:
    nothing = Split("test", *(np.zeros(n, np.int64) for n in (0, 1, 1, 0)))
    for empty, limit in ((nothing, 1000), (split, 0)):
        config = dataclasses.replace(CONFIG)
        object.__setattr__(config, "max_turn_tokens", limit)
        with pytest.raises(DataError, match=rf"{empty.name}: no turn has {limit} tokens or fewer\. Raise --batches"):
            Windows(empty, config, 0)


@CONTEXTS
def test_decoder_inputs_are_bos_and_the_target_without_its_end(split: Split, context_turns: int) -> None:
    batch = windows_of(split, context_turns).batch(np.arange(30))
    for inputs, target, length in zip(batch.inputs_BT, batch.target_B, batch.target_lengths_B, strict=True):
        assert inputs[:length].tolist() == [BOS, *batch.turns_NT[target, : length - 1]]
        assert batch.turns_NT[target, length - 1] == EOS


@CONTEXTS
def test_arrays_have_the_shapes_and_kinds_of_the_legend(split: Split, context_turns: int) -> None:
    batch = windows_of(split, context_turns).batch(np.arange(30))
    N = len(batch.turns_NT)
    kinds = {name: value.dtype for name, value in zip(batch._fields, batch, strict=True)}
    assert kinds.pop("unknown_BK") == torch.bool
    assert set(kinds.values()) == {torch.int64}
    assert batch.turns_NT.shape == (N, batch.turn_lengths_N.max())
    assert batch.inputs_BT.shape == (30, batch.target_lengths_B.max())
    assert batch.context_BK.shape == batch.same_speaker_BK.shape == batch.unknown_BK.shape == (30, context_turns)
    assert batch.turn_lengths_N.shape == (N,)
    assert {len(value) for value in (batch.target_B, batch.target_lengths_B, batch.context_lengths_B)} == {30}
    assert batch.tokens == batch.turn_lengths_N[batch.target_B].sum()


@CONTEXTS
def test_beyond_its_length_a_turn_is_padding_and_a_context_points_to_turn_0(split: Split, context_turns: int) -> None:
    batch = windows_of(split, context_turns).batch(np.arange(30))
    for ids, length in zip(batch.turns_NT, batch.turn_lengths_N, strict=True):
        assert (ids[length:] == PAD).all()
    for turns, bits, count in zip(batch.context_BK, batch.same_speaker_BK, batch.context_lengths_B, strict=True):
        assert not turns[count:].any()
        assert not bits[count:].any()


# Windows that stand free


@CONTEXTS
def test_collated_windows_come_back_with_the_last_k_turns_of_their_context(context_turns: int) -> None:
    windows = random_windows(12, 4)
    expected = [
        (
            tuple(tuple(turn.tolist()) for turn in window.context[max(len(window.context) - context_turns, 0) :]),
            tuple(window.target.tolist()),
            tuple(bool(bit) for bit in window.same_speaker[max(len(window.context) - context_turns, 0) :]),
        )
        for window in windows
    ]
    assert examples_of(collate(windows, context_turns)) == expected


def test_an_empty_text_is_its_end_mark() -> None:
    batch = collate([Window([], np.zeros(0, np.int64), [])], 0)
    assert batch.turns_NT.tolist() == [[EOS]]
    assert batch.inputs_BT.tolist() == [[BOS]]
    assert batch.tokens == 1


@CONTEXTS
def test_hiding_all_contexts_leaves_the_targets(context_turns: int) -> None:
    batch = collate(random_windows(12, context_turns), context_turns)
    hidden = examples_of(batch.without_context())
    assert [target for _, target, _ in hidden] == [target for _, target, _ in examples_of(batch)]
    assert all(context == () for context, _, _ in hidden)


# Evaluation


@pytest.mark.parametrize("limit", [0, 1, 2, 17, 10**6])
@CONTEXTS
def test_in_order_gives_each_window_at_most_once_and_as_many_as_asked_for(split: Split, context_turns: int, limit: int) -> None:
    windows = windows_of(split, context_turns)
    given = list(windows.in_order(limit))
    chosen = np.concatenate([indices for indices, _ in given])
    assert len(set(chosen)) == len(chosen) == min(limit or len(windows), len(windows))
    for indices, batch in given:
        assert same(batch, windows.batch(indices))


def test_a_sample_in_order_is_spread_evenly(split: Split) -> None:
    windows = windows_of(split)
    chosen = np.sort(np.concatenate([indices for indices, _ in windows.in_order(10)]))
    assert chosen[0] == 0
    assert chosen[-1] == len(windows) - 1
    assert np.ptp(np.diff(chosen)) <= 1


@pytest.mark.parametrize("limit", [0, 10])
@CONTEXTS
def test_parts_of_the_batches_in_order_make_the_whole(split: Split, context_turns: int, limit: int) -> None:
    windows = windows_of(split, context_turns)
    whole = [indices.tolist() for indices, _ in windows.in_order(limit)]
    dealt = [[indices.tolist() for indices, _ in windows.in_order(limit, part, 3)] for part in range(3)]
    assert [whole[part::3] for part in range(3)] == dealt


@CONTEXTS
def test_a_sample_in_order_fills_its_batches(split: Split, context_turns: int) -> None:
    """However many windows there are that it is drawn from."""
    windows = windows_of(split, context_turns)
    costs = [batch.tokens for _, batch in windows.in_order(len(windows) // 3)]
    assert len(costs) == math.ceil(sum(costs) / CONFIG.tokens) < len(list(windows.in_order())) / 2


# Training


def training(split: Split, context_turns: int = 3, seed: int = 0, **settings: Any) -> TrainingBatches:
    losing = {"context_dropout": 0.3, "utterance_dropout": 0.2, "word_dropout": 0.4}
    block_turns = settings.pop("block_turns", 2**24)
    config = dataclasses.replace(CONFIG, **{**losing, **settings})
    return TrainingBatches(split, config, context_turns, seed, noise_size=2, block_turns=block_turns)


def equal_parts(one: list[tuple[Batch, Tensor]], other: list[tuple[Batch, Tensor]]) -> bool:
    return len(one) == len(other) and all(same(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(one, other, strict=True))


@CONTEXTS
def test_a_batch_is_a_function_of_seed_and_step_whatever_came_before(split: Split, context_turns: int) -> None:
    batches = training(split, context_turns)
    steps = [0, 1, 5 * batches.windows.batches_per_epoch + 2, 3, 0]
    seen = [batches.parts(step) for step in steps]
    for step, parts in zip(steps, seen, strict=True):
        assert equal_parts(training(split, context_turns).parts(step), parts)


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 1}])
def test_another_seed_or_step_gives_another_batch(split: Split, change: dict[str, int]) -> None:
    other = training(split, seed=change.get("seed", 0)).parts(change.get("step", 0))
    assert not equal_parts(training(split).parts(0), other)


def test_epochs_hold_the_same_windows_in_another_order(split: Split) -> None:
    batches = training(split, context_dropout=0.0)
    size = batches.windows.batches_per_epoch
    epochs = [
        [example for step in range(first, first + size) for example in examples_of(batches.parts(step)[0][0])]
        for first in (0, size)
    ]
    assert epochs[0] != epochs[1]
    assert Counter(epochs[0]) == Counter(epochs[1]) == Counter(expected_examples(split, 3))


def rows(parts: list[tuple[Batch, Tensor]]) -> Counter[Any]:
    """Each window of the parts with its noise, its withheld turns and its inputs, some of them dropped."""
    return Counter(
        (example, tuple(noise.tolist()), tuple(unknown.tolist()), tuple(inputs[:length].tolist()))
        for batch, noise_BZ in parts
        for example, noise, unknown, inputs, length in zip(
            examples_of(batch), noise_BZ, batch.unknown_BK, batch.inputs_BT, batch.target_lengths_B, strict=True
        )
    )


@pytest.mark.parametrize("count", [2, 3, 7])
@CONTEXTS
def test_in_however_many_parts_a_window_meets_the_same_noise_and_loses_the_same_words(
    split: Split, context_turns: int, count: int
) -> None:
    batches = training(split, context_turns)
    for step in range(3):
        parts = batches.parts(step, count)
        whole = batches.parts(step)
        assert len(parts) <= count
        assert rows(parts) == rows(whole)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_part_asked_for_alone_is_the_one_among_all(split: Split, count: int) -> None:
    """And of twice as many parts, two make each: part i of n is parts 2i and 2i + 1 of 2n."""
    batches = training(split)
    parts = batches.parts(1, count)
    for i in range(count):
        assert equal_parts(batches.parts(1, count, [i]), parts[i : i + 1])
        assert rows(batches.parts(1, 2 * count, [2 * i, 2 * i + 1])) == rows(parts[i : i + 1])


def test_random_numbers_are_made_for_the_part_asked_for_alone(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[tuple[int, ...], int] = {}

    def counting(key: list[int], places_B: np.ndarray, width: int) -> np.ndarray:
        made[tuple(key)] = len(places_B)
        return np.zeros((len(places_B), width), np.float32)

    for name in ("normal", "uniform"):
        monkeypatch.setattr(f"vrae.corpus.batches.{name}", counting)
    ((batch, _),) = training(split).parts(0, 2, [1])
    assert list(made.values()) == [len(batch.target_B)] * 4  # with a key each


@CONTEXTS
def test_parts_have_as_many_tokens_and_keep_neighbours_together(split: Split, context_turns: int) -> None:
    """To within a window, and but for those at the cuts: a part is a run of the batch."""
    batches = training(split, context_turns, context_dropout=0.0, tokens=1000)
    steps = [step for step in range(batches.batches_per_epoch) if batches.size(step)[1] > 900]
    for step, count in itertools.product(steps, (2, 5)):
        whole = examples_of(batches.parts(step)[0][0])
        parts = [examples_of(batch) for batch, _ in batches.parts(step, count)]
        costs = [sum(len(target) + 1 for _, target, _ in part) for part in parts]
        assert [example for part in parts for example in part] == whole
        assert max(costs) - min(costs) <= 2 * (LIMIT + 1) < sum(costs) / count


def test_there_are_no_more_parts_than_windows(split: Split) -> None:
    (whole,) = training(split).parts(0)
    parts = training(split).parts(0, 1000)
    assert [len(batch.target_B) for batch, _ in parts] == [1] * len(whole[0].target_B)


# Training block by block


def test_a_large_split_is_learnt_from_in_blocks_of_whole_dialogues(split: Split) -> None:
    """Each window once in an epoch, in the batches that a corpus of the block alone would give, blocks in changing order."""
    batches = training(split, block_turns=40, context_dropout=0.0)
    turns = len(split.turns) - 1
    assert batches.turns == len(windows_of(split, 3))
    assert batches.tokens == windows_of(split, 3).tokens
    assert batches.left_out == turns - batches.turns
    size, opened = batches.batches_per_epoch, []
    for epoch in range(3):
        blocks: dict[int, list[int]] = {}
        for step in range(epoch * size, (epoch + 1) * size):
            turns_B = batches.turns_of(step)
            assert batches.size(step)[0] == len(turns_B) == sum(len(noise) for _, noise in batches.parts(step, 2))
            blocks.setdefault(id(batches.windows), []).extend(turns_B.tolist())
            opened.append(batches.windows)  # so that no later one gets its number
        assert len(blocks) >= turns // 40
        found = sorted(turn for block in blocks.values() for turn in block)
        assert found == windows_of(split, 3).target_N.tolist()
        for block in blocks.values():
            starts = split.dialogues[np.searchsorted(split.dialogues, [min(block), max(block)], side="right") - 1]
            assert np.ptp(starts) < 40 + max(np.diff(split.dialogues))
    firsts = set()
    for epoch in range(8):
        batches.windows_of(epoch * size)
        firsts.add(int(batches.windows.split.turns[0]))
    assert len(firsts) > 1


def test_the_next_block_is_planned_while_one_is_learnt_from(split: Split) -> None:
    batches = training(split, block_turns=40)
    batches.windows_of(0)
    assert batches._coming
    coming, opened = batches._coming.result(), batches.windows
    assert coming.windows is not opened
    for step in range(coming.first_step):
        batches.windows_of(step)
        assert batches.windows is opened
    batches.windows_of(coming.first_step)
    assert batches.windows is coming.windows


@pytest.mark.parametrize("block_turns", [1, 40, 100])
@CONTEXTS
def test_blocks_hold_the_examples_of_the_split(split: Split, context_turns: int, block_turns: int) -> None:
    batches = training(split, context_turns, block_turns=block_turns, context_dropout=0.0)
    steps = range(batches.batches_per_epoch)
    found = [example for step in steps for batch, _ in batches.parts(step, 2) for example in examples_of(batch)]
    assert Counter(found) == Counter(expected_examples(split, context_turns))
    again = training(split, context_turns, block_turns=block_turns, context_dropout=0.0)
    for step in (len(steps) + 3, 1, len(steps) - 1):
        assert equal_parts(
            again.parts(step), training(split, context_turns, block_turns=block_turns, context_dropout=0.0).parts(step)
        )


def test_a_split_of_one_block_has_the_order_of_its_windows(split: Split) -> None:
    batches, windows = training(split, seed=7), windows_of(split, 3)
    for epoch in range(2):
        plan = windows.plan(np.random.default_rng([7, 0, epoch]))
        assert batches.batches_per_epoch == len(plan)
        for place, windows_B in enumerate(plan):
            assert batches.turns_of(epoch * len(plan) + place).tolist() == windows.target_N[windows_B].tolist()


def test_a_block_without_a_target_is_passed_over(split: Split) -> None:
    turns = np.concatenate([[0], np.cumsum([20] * 10 + [3] * 10)])
    odd = Split("train", np.full(turns[-1], 5), turns, np.array([0, 10, 20]), np.zeros(20, np.int64))
    batches = training(odd, block_turns=10)
    assert (batches.turns, batches.left_out) == (10, 10)
    assert sorted(batches.turns_of(0)) == list(range(10, 20))


def test_noise_is_standard_normal(split: Split) -> None:
    batches = training(split)
    noise = torch.cat([batches.parts(step)[0][1] for step in range(100)]).flatten().double()
    error = 4 / math.sqrt(len(noise))
    assert abs(noise.mean()) < error
    assert abs(noise.var() - 1) < error * math.sqrt(2)


def losing_and_not(split: Split, **rates: float) -> list[tuple[Batch, Batch]]:
    """Batches with something dropped, each beside the same one with nothing dropped."""
    nothing = dict.fromkeys(("context_dropout", "utterance_dropout", "word_dropout"), 0.0)
    losing, whole = training(split, **{**nothing, **rates}), training(split, **nothing)
    return [(losing.parts(step)[0][0], whole.parts(step)[0][0]) for step in range(60)]


def assert_rate(found: int, of: int, rate: float) -> None:
    assert abs(found - rate * of) <= 4 * math.sqrt(of * rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_words_are_dropped_from_inputs_at_their_rate_and_from_nothing_else(split: Split, rate: float) -> None:
    dropped = words = 0
    for batch, whole in losing_and_not(split, word_dropout=rate):
        assert same(batch._replace(inputs_BT=whole.inputs_BT), whole)
        real_BT = torch.arange(whole.inputs_BT.shape[1]) < whole.target_lengths_B[:, None]
        dropped_BT = (batch.inputs_BT == UNK) & real_BT
        assert torch.equal(batch.inputs_BT[real_BT & ~dropped_BT], whole.inputs_BT[real_BT & ~dropped_BT])
        assert not dropped_BT[:, 0].any()  # bos
        dropped += int(dropped_BT.sum())
        words += int(real_BT[:, 1:].sum())
    assert_rate(dropped, words, rate)


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_contexts_are_cut_to_their_last_turns_at_their_rate_and_evenly(split: Split, rate: float) -> None:
    """Of full windows, a share `rate` is cut, and each length from 0 to K - 1 is as frequent as the others."""
    K = 3
    kept, full = [0] * (K + 1), 0
    for batch, whole in losing_and_not(split, context_dropout=rate):
        for (context, target, bits), (all_turns, all_target, all_bits) in zip(
            examples_of(batch), examples_of(whole), strict=True
        ):
            count = len(context)
            assert target == all_target
            assert (context, bits) == (all_turns[len(all_turns) - count :], all_bits[len(all_bits) - count :])
            if len(all_turns) == K:
                kept[count] += 1
                full += 1
    assert full > 500
    for count in range(K):
        assert_rate(kept[count], full, rate / K)


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_turn_vectors_are_withheld_at_their_rate_and_nothing_else_changes(split: Split, rate: float) -> None:
    withheld = turns = 0
    for batch, whole in losing_and_not(split, utterance_dropout=rate):
        assert same(batch._replace(unknown_BK=whole.unknown_BK), whole)
        assert not whole.unknown_BK.any()
        withheld += int(batch.unknown_BK.sum())
        turns += batch.unknown_BK.numel()
    assert_rate(withheld, turns, rate)


def test_a_hidden_context_is_not_encoded(split: Split) -> None:
    windows = windows_of(split, 3)
    chosen = np.arange(30)
    dropped = Dropped(np.zeros(30, np.int64), np.zeros((30, 3), bool), np.zeros((30, LIMIT), bool))
    batch = windows.batch(chosen, dropped)
    assert not batch.context_lengths_B.any()
    assert len(batch.turns_NT) == 30


def test_moving_to_the_cpu_changes_nothing(split: Split) -> None:
    batch = windows_of(split, 1).batch(np.arange(5))
    assert batch.to(torch.device("cpu")) is batch
