"""What is met on the way from one turn to another: are the ends kept, do the steps differ, is each of them a sentence?

A path is what `Pipeline.interpolate` makes of a pair of turns. Standard errors are over paths.

Shape legend: S points, Z latent.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from vrae.corpus.prepared import Split
from vrae.corpus.tokenizer import Tokenizer
from vrae.errors import DataError, UserError
from vrae.evaluation.quality import Perplexity, Ratio, check_judge, perplexity
from vrae.generation.latent import lerp, slerp
from vrae.generation.pipeline import Pipeline


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
class PathQuality:
    """Paths between pairs of turns; `.._error` are standard errors over paths."""

    paths: list[list[str]]  # the texts, both ends included
    exact_ends: float  # share of the given turns that come back word for word
    exact_ends_error: float | None
    distinct: float  # mean number of different texts on a path
    distinct_error: float | None
    step_change: float  # mean over steps of the share of tokens that change, see `token_change`
    largest_step_change: float  # mean over paths of their largest such share
    inner_exact: float  # share of inner texts that come back word for word when they are encoded themselves
    inner_exact_error: float | None
    inner_cosine: float  # mean over inner points of the cosine between z and the posterior mean of the text decoded from it
    inner_cosine_error: float | None
    forward: Perplexity | None  # of the inner texts; None: no judge
    forward_given: Perplexity | None  # of the given turns: the yardstick beside it


def interpolation(
    pipeline: Pipeline,
    pairs: Sequence[tuple[str, str]],
    steps: int = 7,
    *,
    method: Literal["slerp", "lerp"] = "slerp",
    judge: Pipeline | None = None,
) -> PathQuality:
    """Walks from one turn of each pair to the other, as `Pipeline.interpolate` does, and looks at what is met on the way.

    Args:
        pipeline: of a model with a latent.
        pairs: at least one.
        steps: points on a path, both ends included, 3 or more.
        method: along the great circle or the straight line.
        judge: a language model, for the perplexity of the inner points.

    Raises:
        UserError: fewer than 3 steps or more than 200.
        ModelError: the model has no latent, or the judge is no language model.
    """
    assert pairs, "no pair to walk between"
    if steps < 3:
        raise UserError(f"steps must be 3 or more, for a path to have inner points. Got {steps}")
    if judge:
        check_judge(judge)
    move, t_S = (slerp if method == "slerp" else lerp), torch.linspace(0, 1, steps)
    ends, different, change, largest, inner, cosine = (Ratio() for _ in range(6))
    paths: list[list[str]] = []
    for a, b in pairs:
        path = [step.text for step in pipeline.interpolate(a, b, steps, method=method)]
        exact = [result.exact for result in pipeline.reconstruct([a, b, *path[1:-1]])]
        means_SZ = torch.from_numpy(pipeline.encode([a, b, *path[1:-1]])[0])
        walked_SZ = move(means_SZ[0], means_SZ[1], t_S)[1:-1]
        cosine_S = torch.cosine_similarity(walked_SZ, means_SZ[2:], dim=-1)
        changes = [token_change(*ids) for ids in itertools.pairwise(pipeline.tokenizer.encode(path))]
        ends.add(sum(exact[:2]) / 2)
        different.add(len(set(path)))
        change.add(sum(changes) / len(changes))
        largest.add(max(changes))
        inner.add(sum(exact[2:]) / (steps - 2))
        cosine.add(float(cosine_S.double().mean()))
        paths.append(path)
    inner_texts, given = [text for path in paths for text in path[1:-1]], [text for pair in pairs for text in pair]
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
        forward_given=perplexity(judge, given, group=2) if judge else None,
    )


def token_change(a: Sequence[int], b: Sequence[int]) -> float:
    """1 - longest common subsequence / longer length: 0 for the same tokens, 1 for none in common; 0 for two empty texts."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b):
            before, row[j + 1] = row[j + 1], before + 1 if x == y else max(row[j + 1], row[j])
    return 1 - row[-1] / max(len(a), len(b)) if a or b else 0.0
