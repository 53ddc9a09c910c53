"""`vrae plot`: from a model, and a corpus or sentences, to a picture.

    vrae plot map "hello" "see you tomorrow"     turns of a corpus in the latent space, and the way between the two over them
    vrae plot paths --paths 4 --seed 1           a sheet of interpolations, here between turns drawn from the corpus
    vrae plot rate                               what each latent dimension carries
    vrae plot training                           the curves of a run

Shape legend: Z latent, S points of a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from vrae.apps.plots import MAX_PATHS, LatentPath, plot_latent_map, plot_rate_per_dimension, plot_training
from vrae.apps.sheet import plot_paths
from vrae.bundled import NAMES
from vrae.config import BatchConfig
from vrae.corpus.batches import Windows
from vrae.corpus.prepared import Corpus
from vrae.errors import ModelError, UserError
from vrae.evaluation.likelihood import measure
from vrae.evaluation.paths import draw_pairs, sentences
from vrae.generation.latent import lerp, slerp
from vrae.generation.pipeline import Pipeline, load
from vrae.generation.text_model import MAX_CHARACTERS
from vrae.training.hardware import pick_device
from vrae.training.run_folder import corpus_of

Method = Literal["slerp", "lerp"]
Colour = Literal["length", "kind"]


def plot(
    what: str,
    texts: Sequence[str] = (),
    *,
    model: str = NAMES["sentences"],
    data: str = "",
    split: str = "test",
    out: str = "",
    by: Colour = "length",
    turns: int = 2000,
    steps: int = 7,
    method: Method = "slerp",
    paths: int = 4,
    seed: int = 0,
    device: str = "cpu",
) -> Path:
    """Draws one picture; returns its file.

    Args:
        what: map, rate, paths or training.
        texts: for map and paths: sentences, each two the ends of a path. Without them, turns of the corpus are drawn.
        model: model or run folder, a bundled model, or Hub id; for training a run folder.
        data: a prepared corpus. Empty: the one the run was trained on.
        split: of it.
        out: the PNG file. Empty: the picture's name in this folder.
        by: what the points of the map are coloured by: length (in words) or kind (question or statement).
        turns: map and rate take an even sample of so many.
        steps: points on a path, both ends included.
        method: slerp (great circle) or lerp (straight line).
        paths: how many paths to draw from the corpus where no sentences are given; for map, 0 is none.
        seed: of what is drawn.
        device: where the model runs.

    Raises:
        UserError: there is no such picture, an odd number of sentences, too few turns, no latent, or another thing is missing.
    """
    if what not in ("map", "rate", "paths", "training"):
        raise UserError(f"plot {what}: draws map, rate, paths or training")
    if texts and what in ("rate", "training"):
        raise UserError(f"plot {what} takes no sentences. Got {len(texts)}")
    if len(texts) % 2:
        raise UserError(f"sentences come in pairs, the two ends of a path. Got {len(texts)}")
    if not 0 <= paths <= MAX_PATHS:
        raise UserError(f"--paths must be 0 to {MAX_PATHS}. Got {paths}")
    file = Path(out or f"{what}.png")
    if what == "training":
        return plot_training(model, file)
    pipeline = load(model, str(pick_device(device)))
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    if what == "paths" and pairs:
        return plot_sheet(pipeline, pairs, file, steps=steps, method=method)
    corpus = Corpus(data or corpus_of(Path(model)))
    if what == "rate":
        return plot_rate(pipeline, corpus, split, file, count=turns, seed=seed)
    if not pairs and paths:
        pairs = draw_pairs(sentences(corpus[split], corpus.tokenizer), paths, seed=seed)
    if what == "paths":
        return plot_sheet(pipeline, pairs, file, steps=steps, method=method)
    return plot_map(pipeline, even_turns(pipeline, corpus, split, turns), file, pairs, by=by, steps=steps, method=method)


def plot_map(
    pipeline: Pipeline,
    texts: Sequence[str],
    out: str | Path,
    pairs: Sequence[tuple[str, str]] = (),
    *,
    by: Colour = "length",
    steps: int = 7,
    method: Method = "slerp",
) -> Path:
    """Draws where `texts` lie in the latent space (posterior means, without context), with paths between `pairs` over them.

    Raises:
        UserError: fewer than two texts, more than 8 pairs, more than 24 steps, or no such colouring.
        ModelError: the model has no latent.
    """
    if by == "length":
        values: Sequence[float] | Sequence[str] = [len(text.split()) for text in texts]
    elif by == "kind":
        values = ["question" if text.rstrip().endswith("?") else "statement" for text in texts]
    else:
        raise UserError(f"--by must be length or kind. Got {by!r}")
    name = {"length": "length in words", "kind": "kind"}[by]
    return plot_latent_map(pipeline.encode(texts)[0], {name: values}, out, walk(pipeline, pairs, steps, method))


def plot_rate(pipeline: Pipeline, corpus: Corpus, split: str, out: str | Path, *, count: int = 2000, seed: int = 0) -> Path:
    """Draws the rate of each latent dimension over an even sample of `count` turns, in context where the model reads it.

    Raises:
        UserError: the corpus has another tokenizer, or `count` is below 2.
        ModelError: the model has no latent.
    """
    if not pipeline.model.config.latent_size:
        raise ModelError("this model has no latent (model.latent_size is 0): no rate per dimension to draw")
    if corpus.tokenizer.sha256 != pipeline.tokenizer.sha256:
        raise UserError(
            f"--data {corpus.path}: its tokenizer is not the model's. Prepare it with --tokenizer MODEL/tokenizer.model"
        )
    _check_count(count)
    limit = pipeline.longest_turn
    config = BatchConfig(tokens=max(4096, 16 * (limit + 1)), max_turn_tokens=limit)
    windows = Windows(corpus[split], config, pipeline.model.config.context_turns)
    bound = measure(pipeline.model, windows, limit=count, seed=seed, progress=True)
    return plot_rate_per_dimension(bound.rate_per_dimension, bound.active_dimensions, out)


def plot_sheet(
    pipeline: Pipeline, pairs: Sequence[tuple[str, str]], out: str | Path, *, steps: int = 7, method: Method = "slerp"
) -> Path:
    """Draws the interpolations between 1 to 8 pairs of sentences on one sheet.

    Raises:
        UserError: no pair or more than 8, fewer than 2 steps or more than 24.
        ModelError: the model has no latent.
    """
    return plot_paths(walk(pipeline, pairs, steps, method), out)


def walk(pipeline: Pipeline, pairs: Sequence[tuple[str, str]], steps: int, method: Method) -> list[LatentPath]:
    """`Pipeline.interpolate` for each pair, with the points [S, Z] that the texts are decoded from."""
    move, found = (slerp if method == "slerp" else lerp), []
    for a, b in pairs:
        path = pipeline.interpolate(a, b, steps, method=method)
        t_S = [step.t for step in path]
        ends_2Z = torch.from_numpy(pipeline.encode([a, b])[0])
        points_SZ = move(ends_2Z[0], ends_2Z[1], torch.tensor(t_S, dtype=ends_2Z.dtype)).numpy()
        found.append(LatentPath((a, b), t_S, [step.text for step in path], points_SZ))
    return found


def even_turns(pipeline: Pipeline, corpus: Corpus, split: str, count: int) -> list[str]:
    """An even sample of `count` turns of a split, of those no longer than the model was trained on.

    Raises:
        UserError: `count` is below 2, or the split has fewer than 2 such turns.
    """
    _check_count(count)
    turns, limit = corpus[split], pipeline.longest_turn
    short = np.flatnonzero(np.diff(turns.turns) <= limit)
    if len(short) < 2:
        raise UserError(f"{corpus.path}: {split} has {len(short)} turns of at most {limit} tokens, a map needs two or more")
    chosen = short[np.linspace(0, len(short) - 1, min(count, len(short))).astype(np.int64)]
    texts = (corpus.tokenizer.decode(turns.turn(turn)) for turn in chosen.tolist())
    return [text for text in texts if len(text) <= MAX_CHARACTERS]


def _check_count(count: int) -> None:
    if count < 2:
        raise UserError(f"--turns must be 2 or more. Got {count}")
