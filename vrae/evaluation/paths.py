"""What is met on the way from one turn to another: are the ends kept, do the steps differ, is each of them a sentence, and does
each lead further away from the start and nearer to the end?

A path is what `Pipeline.interpolate` makes of a pair of turns. Standard errors are over paths.

Shape legend: P paths, S points, Z latent.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vrae.corpus.prepared import Split
from vrae.corpus.tokenizer import Tokenizer
from vrae.errors import DataError, UserError
from vrae.evaluation.quality import Perplexity, Ratio, check_judge, perplexity
from vrae.evaluation.replies import Estimate, estimate
from vrae.generation.pipeline import Pipeline
from vrae.generation.responses import share_changed


def sentences(split: Split, tokenizer: Tokenizer, *, min_tokens: int = 2, max_tokens: int = 8) -> list[str]:
    """The different turns of `split` with so many tokens, sorted.

    Raises:
        DataError: fewer than two.
    """
    lengths = np.diff(split.turns)
    chosen = np.flatnonzero((lengths >= min_tokens) & (lengths <= max_tokens))
    found = sorted({tokenizer.decode(split.turn(turn)) for turn in chosen.tolist()})
    if len(found) < 2:
        raise DataError(
            f"{split.name}: paths need two different turns of {min_tokens} to {max_tokens} tokens. It has {len(found)}"
        )
    return found


def draw_pairs(among: Sequence[str], count: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """`count` pairs of different members, each pair drawn from all of them."""
    rng = np.random.default_rng(seed)
    pairs = (rng.choice(len(among), 2, replace=False) for _ in range(count))
    return [(among[a], among[b]) for a, b in pairs]


@dataclass(frozen=True)
class Monotony:
    """Whether the texts of a path lead away from its start and towards its end; distances between latents.

    A step from a text to the same text again changes neither distance, so that a path with few different texts is monotone
    easily. The shares named `.._moving` leave such steps out; ties count half in the correlation.
    """

    away: Estimate  # share of steps at which the distance from the start does not fall
    closer: Estimate  # share of steps at which the distance to the end does not rise
    away_moving: Estimate | None  # share of the steps that change a distance at which that from the start rises; None: no such
    closer_moving: Estimate | None  # and at which that to the end falls
    whole: Estimate  # share of paths on which the first two hold at every step
    rank_correlation: Estimate  # Spearman's, of t and (distance from the start - distance to the end), mean over paths


def monotony(from_start_PS: np.ndarray, to_end_PS: np.ndarray) -> Monotony:
    """Reads it off the distances of each path's points, two or more, from where it starts and to where it ends."""
    assert from_start_PS.shape == to_end_PS.shape, f"{from_start_PS.shape} and {to_end_PS.shape}: not of the same points"
    assert from_start_PS.shape[1] > 1, "no step"
    gone, left = np.diff(from_start_PS), np.diff(to_end_PS)  # [P, S - 1]
    moving = (gone != 0) | (left != 0)
    return Monotony(
        away=estimate((gone >= 0).mean(1)),
        closer=estimate((left <= 0).mean(1)),
        away_moving=_share((gone > 0).sum(1), moving.sum(1)),
        closer_moving=_share((left < 0).sum(1), moving.sum(1)),
        whole=estimate(((gone >= 0) & (left <= 0)).all(1).astype(float)),
        rank_correlation=estimate(order_along(from_start_PS - to_end_PS)),
    )


def order_along(values_PS: np.ndarray) -> np.ndarray:
    """[P], Spearman's rank correlation of each row with the order of its columns: the correlation of the ranks, those of equal
    values being their mean. A row of equal values has no order: 0."""
    below = (values_PS[:, :, None] > values_PS[:, None, :]).sum(-1)
    not_above = (values_PS[:, :, None] >= values_PS[:, None, :]).sum(-1)
    rank_PS = (below + not_above) / 2
    rank_PS -= rank_PS.mean(1, keepdims=True)
    place_S = np.arange(rank_PS.shape[1]) - (rank_PS.shape[1] - 1) / 2
    size_P = np.sqrt((rank_PS**2).sum(1) * (place_S**2).sum())
    return (rank_PS @ place_S) / np.where(size_P > 0, size_P, 1)  # type: ignore[no-any-return]


def _share(part_P: np.ndarray, whole_P: np.ndarray) -> Estimate | None:
    share = Ratio()
    for part, whole in zip(part_P.tolist(), whole_P.tolist(), strict=True):
        share.add(part, whole)
    return Estimate(share.value, share.error) if share.x else None


@dataclass(frozen=True)
class PathQuality:
    """Paths between pairs of turns; `.._error` are standard errors over paths."""

    paths: list[list[str]]  # the texts, both ends included
    exact_ends: float  # share of the given turns that come back word for word
    exact_ends_error: float | None
    distinct: float  # mean number of different texts on a path
    distinct_error: float | None
    step_change: float  # mean over steps of the share of tokens that change, see `share_changed`
    largest_step_change: float  # mean over paths of their largest such share
    inner_exact: float  # share of inner points whose ids, as they were decoded, come back when they are encoded themselves
    inner_exact_error: float | None
    inner_cosine: float  # mean over inner points of the cosine between z and the posterior mean of the ids decoded from it
    inner_cosine_error: float | None
    forward: Perplexity | None  # of the inner texts; None: no judge
    forward_by_point: tuple[Perplexity, ...]  # of the texts at each t, both ends included; empty: no judge
    forward_given: Perplexity | None  # of the given turns: the yardstick beside it
    monotony: Monotony  # of the posterior means of the texts, seen from those of the given turns
    shuffled: Monotony  # the same with the inner texts of each path in random order: what comes about without any order


def interpolation(
    pipeline: Pipeline,
    pairs: Sequence[tuple[str, str]],
    steps: int = 7,
    *,
    method: Literal["slerp", "lerp"] = "slerp",
    judge: Pipeline | None = None,
    seed: int = 0,
) -> PathQuality:
    """Walks from one turn of each pair to the other, as `Pipeline.interpolate` does, and looks at what is met on the way.

    Args:
        pipeline: of a model with a latent.
        pairs: at least one.
        steps: points on a path, both ends included, 3 or more.
        method: along the great circle or the straight line.
        judge: a language model, for the perplexity of the texts.
        seed: of the shuffled order.

    Raises:
        UserError: fewer than 3 steps or more than 200.
        ModelError: the model has no latent, or the judge is no language model.
    """
    assert pairs, "no pair to walk between"
    if steps < 3:
        raise UserError(f"steps must be 3 or more, for a path to have inner points. Got {steps}")
    if judge:
        check_judge(judge)
    ends, different, change, largest, inner, cosine = (Ratio() for _ in range(6))
    paths: list[list[str]] = []
    given = [text for pair in pairs for text in pair]
    # of the turn itself; `Step.exact` at an end is of what it was decoded to
    exact = [result.exact for result in pipeline.reconstruct(given)]
    for (a, b), a_exact, b_exact in zip(pairs, exact[::2], exact[1::2], strict=True):
        points = pipeline.interpolate(a, b, steps, method=method)
        path = [point.text for point in points]
        changes = [share_changed(*ids) for ids in itertools.pairwise(pipeline.tokenizer.encode(path))]
        ends.add((a_exact + b_exact) / 2)
        different.add(len(set(path)))
        change.add(sum(changes) / len(changes))
        largest.add(max(changes))
        # `Step` has these of the ids that were decoded; encoded anew, the same text may get others
        inner.add(sum(point.exact for point in points[1:-1]) / (steps - 2))
        cosine.add(sum(point.cosine for point in points[1:-1]) / (steps - 2))
        paths.append(path)
    inner_texts = [text for path in paths for text in path[1:-1]]
    from_start_PS, to_end_PS = _distances(pipeline, pairs, paths)
    order_PS = np.tile(np.arange(steps), (len(pairs), 1))
    order_PS[:, 1:-1] = np.random.default_rng(seed).permuted(order_PS[:, 1:-1], axis=1)
    shuffled = (np.take_along_axis(distance_PS, order_PS, axis=1) for distance_PS in (from_start_PS, to_end_PS))
    return PathQuality(
        paths=paths,
        exact_ends=ends.value,
        exact_ends_error=ends.error,
        distinct=different.value,
        distinct_error=different.error,
        step_change=change.value,
        largest_step_change=largest.value,
        inner_exact=inner.value,
        inner_exact_error=inner.error,
        inner_cosine=cosine.value,
        inner_cosine_error=cosine.error,
        forward=perplexity(judge, inner_texts, group=steps - 2) if judge else None,
        forward_by_point=tuple(perplexity(judge, texts) for texts in zip(*paths, strict=True)) if judge else (),
        forward_given=perplexity(judge, given, group=2) if judge else None,
        monotony=monotony(from_start_PS, to_end_PS),
        shuffled=monotony(*shuffled),
    )


def _distances(
    pipeline: Pipeline, pairs: Sequence[tuple[str, str]], paths: Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distances [P, S] of the texts' posterior means from that of the first given turn, and to that of the second.

    The given turns are where the walk starts and ends. From what they were decoded to, the first step could only lead away.
    """
    texts = list(dict.fromkeys(itertools.chain(*pairs, *paths)))
    mean = dict(zip(texts, pipeline.encode(texts)[0].astype(np.float64), strict=True))
    points_PSZ = np.array([[mean[text] for text in path] for path in paths])
    ends_2PZ = np.array([[mean[pair[end]] for pair in pairs] for end in (0, 1)])
    # Texts that are cleaned to the same are at the same place, up to how a batch rounds: between them there is no step.
    from_start_PS, to_end_PS = np.linalg.norm(points_PSZ - ends_2PZ[:, :, None], axis=-1).round(5)
    return from_start_PS, to_end_PS


def perplexity_ratio(a: Perplexity, b: Perplexity) -> Estimate:
    """a / b, with its standard error by the delta method; the texts of the two are taken for independent."""
    ratio = a.value / b.value
    if a.error is None or b.error is None:
        return Estimate(ratio, None)
    return Estimate(ratio, ratio * float(np.hypot(a.error / a.value, b.error / b.value)))
