"""Prepared corpus to batches: which turns are learnt from, in which order, with which context.

An example is a window: one target turn and the K turns before it in its dialogue, fewer at the dialogue's start and none for
its first turn. A batch holds each distinct turn once, however many windows it stands in, and the windows point into it.

A large split is learnt from block by block, a block being some millions of turns, so that memory does not grow with it. The
order is a pure function of (seed, epoch), and a batch of (seed, step): resuming needs a step number and nothing else.

Shape legend: B windows, K context turns, N distinct turns, T tokens of the longest.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vrae.config import BatchConfig
from vrae.corpus.noise import normal, uniform
from vrae.corpus.prepared import Split, blocks
from vrae.corpus.tokenizer import BOS, EOS, PAD, UNK
from vrae.errors import ConfigError, DataError

_POOL_BATCHES = 64  # batches that are filled from one pool of shuffled segments, sorted by length
_BLOCK_TURNS = 2**24  # whose order is in memory at once


class Batch(NamedTuple):
    """Distinct turns, and windows that point to them.

    Lengths stay on the CPU: they steer the packing, and reading them from a GPU would stall it.
    """

    turns_NT: Tensor  # int64 ids, each turn ends in eos, then pad
    turn_lengths_N: Tensor  # int64 on the CPU, eos included, >= 1
    target_B: Tensor  # int64, which turn is the target
    inputs_BT: Tensor  # int64, what the decoder reads: bos, then the target's tokens (some replaced by unk in training)
    target_lengths_B: Tensor  # int64 on the CPU, eos included
    context_BK: Tensor  # int64, which turns come before it, oldest first; 0 beyond context_lengths_B
    context_lengths_B: Tensor  # int64 on the CPU, 0 to K
    same_speaker_BK: Tensor  # int64, 1 where the context turn has the target's speaker
    unknown_BK: Tensor  # bool, context turns whose vector is withheld (utterance dropout); all False but in training

    def to(self, device: torch.device) -> Batch:
        """The batch with ids and indices on `device` and lengths where they are."""
        if device.type == "cpu":
            return self
        on_cpu = {"turn_lengths_N", "target_lengths_B", "context_lengths_B"}
        return Batch(
            *(
                value if name in on_cpu else value.pin_memory().to(device, non_blocking=True)
                for name, value in zip(self._fields, self, strict=True)
            )
        )

    @property
    def tokens(self) -> int:
        """Target tokens, end marks included."""
        return int(self.target_lengths_B.sum())

    def without_context(self) -> Batch:
        """The same targets, each with an empty context."""
        return self._replace(context_lengths_B=torch.zeros_like(self.context_lengths_B))


class Window(NamedTuple):
    """One example as ids without bos and eos: context turns, oldest first, and a target."""

    context: list[np.ndarray]
    target: np.ndarray
    same_speaker: list[int]


def collate(windows: list[Window], context_turns: int) -> Batch:
    """A batch of free-standing windows (no turn is shared). Used where text comes from a user and not from a corpus."""
    turns = [
        turn for window in windows for turn in (window.target, *window.context[max(len(window.context) - context_turns, 0) :])
    ]
    sizes = np.array([1 + min(len(window.context), context_turns) for window in windows])
    target_B = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    context_lengths_B = sizes - 1
    context_BK = np.zeros((len(windows), context_turns), np.int64)
    same_BK = np.zeros_like(context_BK)
    for b, (start, count, window) in enumerate(zip(target_B, context_lengths_B, windows, strict=True)):
        context_BK[b, :count] = start + 1 + np.arange(count)
        same_BK[b, :count] = window.same_speaker[len(window.same_speaker) - count :]
    lengths = np.array([len(turn) for turn in turns])
    flat = np.concatenate([np.zeros(0, np.int64), *turns])
    return _assemble(flat, np.cumsum(lengths) - lengths, lengths, target_B, context_BK, context_lengths_B, same_BK)


class Dropped(NamedTuple):
    """What a training batch loses."""

    kept_B: np.ndarray  # int64: how many context turns are kept, the latest ones
    turns_BK: np.ndarray  # bool: context turns whose vector is withheld
    words_BT: np.ndarray  # bool: tokens of the decoder's input, T = those of the longest target


class Windows:
    """The examples of one split: 12 bytes each in memory.

    Args:
        split: of a prepared corpus.
        config: limits and dropouts.
        context_turns: K.

    Attributes:
        target_N: which turn of the split is the target.
        start_N: the first turn of its dialogue.
        cost_N: its tokens, end mark included.
        tokens: of all windows, end marks included.
        left_out: turns of the split that are too long for a target.

    Raises:
        ConfigError: a segment can be longer than a batch.
        DataError: no turn of the split is short enough to be a target.
    """

    def __init__(self, split: Split, config: BatchConfig, context_turns: int) -> None:
        self.split, self.config, self.context_turns = split, config, context_turns
        self._segment = config.segment_turns if context_turns else 1
        turns = len(split.turns) - 1
        self._kind = np.int32 if max(turns, config.tokens) < 2**31 else np.int64  # half the memory where they fit
        most = config.max_turn_tokens + 1  # with the end mark; what is longer only has to stay so
        cost_N = np.concatenate([np.minimum(np.diff(part), most).astype(self._kind) + 1 for part in blocks(split.turns)])
        self.target_N = np.flatnonzero(cost_N <= most).astype(self._kind)
        self.left_out = turns - len(self.target_N)
        if not len(self.target_N):
            raise DataError(
                f"{split.name}: no turn has {config.max_turn_tokens} tokens or fewer. Raise --batches.max_turn_tokens"
            )
        longest = self._segment * (config.max_turn_tokens + 1)
        if longest > config.tokens:
            raise ConfigError(
                f"batches.tokens ({config.tokens}) must hold a segment of batches.segment_turns ({self._segment}) turns of "
                f"batches.max_turn_tokens ({config.max_turn_tokens}) and their end marks: {longest}"
            )
        self.cost_N = cost_N[self.target_N]
        start_N = np.repeat(split.dialogues[:-1].astype(self._kind), np.diff(split.dialogues))
        self.start_N = start_N[self.target_N]
        self.tokens = int(self.cost_N.sum())

    def __len__(self) -> int:
        return len(self.target_N)

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.tokens // self.config.tokens)

    def plan(self, rng: np.random.Generator | None) -> list[np.ndarray]:
        """Which windows (indices into this object) make each batch of an epoch; shuffled by `rng`, or by length without.

        Consecutive turns of a dialogue stay together (segments of `segment_turns` when K >= 1), segments of similar length
        meet in a batch, and every batch but the last is within one segment of `config.tokens`.
        """
        first_S = self._segments(int(rng.integers(self._segment)) if rng else 0)
        cost_S = np.add.reduceat(self.cost_N, first_S, dtype=self._kind)
        longest_S = np.maximum.reduceat(self.cost_N, first_S)
        if self.config.max_turn_tokens < 2**16 - 1:
            longest_S = longest_S.astype(np.uint16)  # which numpy sorts in linear time
        if rng:
            order_S = np.arange(len(first_S), dtype=self._kind)
            rng.shuffle(order_S)
            for pool_S in np.split(order_S, _cuts(cost_S[order_S], self.config.tokens * _POOL_BATCHES)):
                pool_S[:] = pool_S[np.argsort(longest_S[pool_S], kind="stable")]
        else:
            order_S = np.argsort(longest_S, kind="stable").astype(self._kind)
        cuts = _cuts(cost_S[order_S], self.config.tokens)
        if self._segment == 1:  # a window is a segment
            batches = np.split(order_S, cuts)
        else:
            size_S = np.diff(first_S, append=self._kind(len(self)))[order_S]
            end_S = np.cumsum(size_S, dtype=self._kind)
            window_N = np.repeat(first_S[order_S] - (end_S - size_S), size_S)
            window_N += np.arange(len(self), dtype=self._kind)
            batches = np.split(window_N, end_S[cuts - 1])
        if rng:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def _segments(self, shift: int) -> np.ndarray:
        """[S], the first window of each segment; those at a dialogue's start are `shift` windows shorter."""
        if self._segment == 1:
            return np.arange(len(self), dtype=self._kind)
        place_N = self.target_N - self.start_N
        place_N += shift
        place_N //= self._segment
        first_N = np.ones(len(self), bool)
        first_N[1:] = (place_N[1:] != place_N[:-1]) | (self.start_N[1:] != self.start_N[:-1])
        return np.flatnonzero(first_N).astype(self._kind)

    def batch(self, windows_B: np.ndarray, dropped: Dropped | None = None) -> Batch:
        """The batch of these windows, without the contexts and words that are `dropped`."""
        target_B, start_B = self.target_N[windows_B], self.start_N[windows_B]
        context_lengths_B = np.minimum(target_B - start_B, self.context_turns)
        if dropped:
            context_lengths_B = np.minimum(context_lengths_B, dropped.kept_B)
        back_BK = context_lengths_B[:, None] - np.arange(self.context_turns)
        real_BK = back_BK > 0
        context_BK = np.where(real_BK, target_B[:, None] - back_BK, target_B[:, None])
        turn_N, place = np.unique(np.concatenate([target_B, context_BK.ravel()]), return_inverse=True)
        offsets = np.asarray(self.split.turns)
        starts_N = offsets[turn_N]
        lengths_N = offsets[turn_N + 1] - starts_N
        cut_N = np.maximum(lengths_N - self.config.max_turn_tokens, 0)  # never of a target: those are short enough
        same_BK = (self.split.speakers[context_BK] == self.split.speakers[target_B][:, None]) & real_BK
        B = len(target_B)
        return _assemble(
            self.split.tokens,
            starts_N + cut_N,
            lengths_N - cut_N,
            place[:B],
            np.where(real_BK, place[B:].reshape(B, -1), 0),
            context_lengths_B,
            same_BK,
            dropped,
        )

    def in_order(self, limit: int = 0, part: int = 0, count: int = 1) -> Iterator[tuple[np.ndarray, Batch]]:
        """Every window once (or an even sample of `limit`), without dropout, with its index. For evaluation.

        Of several processes, each asks for one `part` of `count`: every so many-th batch.
        """
        sample = copy.copy(self)
        chosen_N = np.arange(len(self), dtype=self._kind)
        if 0 < limit < len(self):
            chosen_N = np.linspace(0, len(self) - 1, limit).astype(self._kind)
            sample.target_N, sample.start_N, sample.cost_N = (a[chosen_N] for a in (self.target_N, self.start_N, self.cost_N))
        for windows_B in sample.plan(None)[part::count]:
            yield chosen_N[windows_B], self.batch(chosen_N[windows_B])


def _cuts(cost_S: np.ndarray, tokens: int) -> np.ndarray:
    """Where to cut a row of segments so that the pieces reach the multiples of `tokens`; no segment costs more than that."""
    total_S = np.cumsum(cost_S, dtype=np.int64)
    return np.searchsorted(total_S, np.arange(tokens, int(total_S[-1]), tokens), side="right")


class _Block(NamedTuple):
    """Neighbouring dialogues of a split, of which nothing is in memory."""

    split: Split
    first: int  # dialogue
    end: int  # the one after the last

    @property
    def first_turn(self) -> int:
        return int(self.split.dialogues[self.first])

    @property
    def turns(self) -> np.ndarray:
        """[N + 1] offsets of its turns into the tokens of the split."""
        return self.split.turns[self.first_turn : self.split.dialogues[self.end] + 1]

    def opened(self) -> Split:
        """As a split of its own."""
        split, turns = self.split, slice(self.first_turn, self.split.dialogues[self.end])
        dialogues = split.dialogues[self.first : self.end + 1] - self.first_turn
        return Split(split.name, split.tokens, self.turns, dialogues, split.speakers[turns])


def _cut(split: Split, block_turns: int) -> list[_Block]:
    """The split in blocks of about that many turns, one at least; a dialogue is in one of them."""
    turns, dialogues = len(split.turns) - 1, len(split.dialogues) - 1
    count = max(-(-turns // block_turns), 1)
    ends = np.searchsorted(split.dialogues, [turns * i // count for i in range(1, count)])
    cuts = [0, *ends.tolist(), dialogues]
    return [_Block(split, first, end) for first, end in itertools.pairwise(cuts) if first < end or count == 1]


def _targets(turns: np.ndarray, most: int) -> tuple[int, int]:
    """How many turns have `most` tokens or fewer, and their tokens, end marks included."""
    count = tokens = 0
    for part in blocks(turns):
        lengths = np.diff(part)
        short = lengths[lengths <= most]
        count, tokens = count + len(short), tokens + int(short.sum()) + len(short)
    return count, tokens


class _Planned(NamedTuple):
    """A block in memory, and the batches that an epoch draws from it."""

    block: int
    windows: Windows
    batches: list[np.ndarray]
    first_step: int

    def holds(self, step: int) -> bool:
        return 0 <= step - self.first_step < len(self.batches)


class TrainingBatches:
    """The endless stream of training batches, addressed by step: a pure function of (seed, step).

    Each epoch goes through the blocks of the split in an order of its own. No batch holds windows of two blocks, so the last
    one of a block may be small. At the start the lengths of all turns are read once; from then on those of two blocks are in
    memory, the one in hand and the one after it, which a thread plans meanwhile.

    Args:
        split: of a prepared corpus.
        config: limits and dropouts.
        context_turns: K.
        seed: of order, dropped contexts and words, and latent noise.
        noise_size: X, width of the noise: Z for each posterior sample.
        block_turns: about how many turns a block has; it ends where a dialogue does.

    Attributes:
        windows: of the block in hand.
        turns: windows of an epoch.
        tokens: of an epoch, end marks included.
        left_out: turns of the split that are too long for a target.
        batches_per_epoch: steps of an epoch.

    Raises:
        ConfigError: a segment can be longer than a batch.
        DataError: no turn of the split is short enough to be a target.
    """

    def __init__(
        self,
        split: Split,
        config: BatchConfig,
        context_turns: int,
        seed: int,
        noise_size: int,
        *,
        block_turns: int = _BLOCK_TURNS,
    ) -> None:
        self.config, self.context_turns, self.seed, self.noise_size = config, context_turns, seed, noise_size
        pieces = _cut(split, block_turns)
        counts = [_targets(block.turns, config.max_turn_tokens) for block in pieces]
        self.turns, self.tokens = (sum(values) for values in zip(*counts, strict=True))
        self.left_out = len(split.turns) - 1 - self.turns
        self._blocks = [block for block, (turns, _) in zip(pieces, counts, strict=True) if turns] or pieces[:1]
        self._steps = np.array([-(-tokens // config.tokens) for turns, tokens in counts if turns])
        self.batches_per_epoch = int(self._steps.sum())
        self._planned = _Planned(0, Windows(self._blocks[0].opened(), config, context_turns), [], 0)
        self._planner = ThreadPoolExecutor(1)
        self._coming: Future[_Planned] | None = None

    @property
    def windows(self) -> Windows:
        return self._planned.windows

    def windows_of(self, step: int) -> np.ndarray:
        """[B], which ones of `windows` are learnt from in `step`; opens their block."""
        if not self._planned.holds(step):
            coming = self._coming.result() if self._coming else self._planned
            self._coming = None
            self._planned = coming if coming.holds(step) else self._plan(step, coming)
            after = self._planned.first_step + len(self._planned.batches)
            self._coming = self._planner.submit(self._plan, after, self._planned)
        return self._planned.batches[step - self._planned.first_step]

    def _plan(self, step: int, at_hand: _Planned) -> _Planned:
        """The block that `step` learns from; that at hand may be the same, and is then not opened again."""
        epoch, place = divmod(step, self.batches_per_epoch)
        order = np.random.default_rng([self.seed, 3, epoch]).permutation(len(self._blocks))
        ends = np.cumsum(self._steps[order])
        nth = int(np.searchsorted(ends, place, side="right"))
        block = int(order[nth])
        windows = at_hand.windows
        if block != at_hand.block:
            windows = Windows(self._blocks[block].opened(), self.config, self.context_turns)
        batches = windows.plan(np.random.default_rng([self.seed, 0, epoch, block]))
        return _Planned(block, windows, batches, step - place + int(ends[nth]) - len(batches))

    def turns_of(self, step: int) -> np.ndarray:
        """[B], the turns of the split that are learnt from in `step`."""
        windows_B = self.windows_of(step)
        turns_B: np.ndarray = self.windows.target_N[windows_B].astype(np.int64) + self._blocks[self._planned.block].first_turn
        return turns_B

    def size(self, step: int) -> tuple[int, int]:
        """Turns and target tokens (end marks included) of `step`."""
        windows_B = self.windows_of(step)
        return len(windows_B), int(self.windows.cost_N[windows_B].sum())

    def parts(self, step: int, count: int = 1, numbers: Iterable[int] | None = None) -> list[tuple[Batch, Tensor]]:
        """The batch of `step` in at most `count` parts, each with its latent noise [B, X]; `numbers`: those parts alone.

        The parts have the same number of tokens, to within a window's, and neighbours stay together, since they share the
        turns they read. A part without a window is left out. Part i of n is parts 2i and 2i + 1 of 2n, and whatever `count`
        is, a window meets the same noise and loses the same words.
        """
        windows_B = self.windows_of(step)
        cost_B = self.windows.cost_N[windows_B]
        middle_B = 2 * np.cumsum(cost_B, dtype=np.int64) - cost_B  # of each window, in halves
        part_B = middle_B * count // (2 * int(cost_B.sum()))
        found = []
        for i in range(count) if numbers is None else numbers:
            first, last = np.searchsorted(part_B, [i, i + 1])
            if first < last:
                found.append(self._part(step, windows_B[first:last], np.arange(first, last)))
        return found

    def _part(self, step: int, windows_B: np.ndarray, places_B: np.ndarray) -> tuple[Batch, Tensor]:
        """Windows that stand at `places_B` of the batch; what is drawn for one hangs on its place alone."""
        config, K, key = self.config, self.context_turns, (self.seed, 1, step)
        T = int(self.windows.cost_N[windows_B].max()) - 1
        kept_B = np.full(len(windows_B), K)
        if config.context_dropout:
            cut_B, share_B = uniform([*key, 0], places_B, 2).T
            kept_B = np.where(cut_B < config.context_dropout, (share_B * K).astype(np.int64), K)
        dropped = Dropped(
            kept_B,
            _drawn([*key, 1], places_B, K, config.utterance_dropout),
            _drawn([*key, 2], places_B, T, config.word_dropout),
        )
        noise_BX = normal([*key, 3], places_B, self.noise_size)
        return self.windows.batch(windows_B, dropped), torch.from_numpy(noise_BX)


def _drawn(key: Sequence[int], places_B: np.ndarray, width: int, rate: float) -> np.ndarray:
    """bool [B, width], True at `rate`."""
    return uniform(key, places_B, width) < rate if rate else np.zeros((len(places_B), width), bool)


def _assemble(
    tokens: np.ndarray,
    starts_N: np.ndarray,
    lengths_N: np.ndarray,
    target_B: np.ndarray,
    context_BK: np.ndarray,
    context_lengths_B: np.ndarray,
    same_speaker_BK: np.ndarray,
    dropped: Dropped | None = None,
) -> Batch:
    """Builds the padded arrays. Turn n is tokens[starts_N[n] : starts_N[n] + lengths_N[n]]."""
    N, T = len(lengths_N), int(lengths_N.max(initial=0)) + 1
    column_T = np.arange(T)
    real_NT = column_T < lengths_N[:, None]
    turns_NT = np.full((N, T), PAD, np.int64)
    turns_NT[real_NT] = tokens[(starts_N[:, None] + column_T)[real_NT]]
    turns_NT[np.arange(N), lengths_N] = EOS
    unknown_BK = dropped.turns_BK if dropped else np.zeros(context_BK.shape, bool)
    target_T = int(lengths_N[target_B].max(initial=0)) + 1
    inputs_BT = np.full((len(target_B), target_T), BOS, np.int64)
    inputs_BT[:, 1:] = turns_NT[target_B, : target_T - 1]
    if dropped:
        inputs_BT[:, 1:][dropped.words_BT[:, : target_T - 1]] = UNK
    return Batch(
        torch.from_numpy(turns_NT),
        torch.from_numpy(np.asarray(lengths_N + 1, np.int64)),
        torch.from_numpy(np.asarray(target_B, np.int64)),
        torch.from_numpy(inputs_BT),
        torch.from_numpy(np.asarray(lengths_N[target_B] + 1, np.int64)),
        torch.from_numpy(np.asarray(context_BK, np.int64)),
        torch.from_numpy(np.asarray(context_lengths_B, np.int64)),
        torch.from_numpy(np.asarray(same_speaker_BK, np.int64)),
        torch.from_numpy(unknown_BK),
    )
