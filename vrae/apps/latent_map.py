"""A map of sentences: where turns lie in the latent space, seen along the two directions in which they differ most.

Shape legend: N sentences, S points of a path, Z latent; 2 is (x, y), of a path its ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from vrae.apps.plot_command import even_turns
from vrae.apps.plots import PrincipalComponents, principal_components
from vrae.corpus.prepared import Corpus
from vrae.errors import UserError
from vrae.generation.latent import slerp
from vrae.generation.pipeline import Pipeline
from vrae.training.run_folder import corpus_of

_DRAWN = 4  # as many turns are drawn from the prior for each that is wanted, at most: short ones may come out the same


@dataclass(frozen=True)
class LatentMap:
    """Sentences and their places. What is placed on the map later does not move them."""

    texts: list[str]  # N different sentences
    points_N2: np.ndarray  # from -1 to 1 the one way, from -height to height the other
    height: float  # at least a half
    source: str  # where they come from, in words
    axes: PrincipalComponents
    reach: float  # of the coordinates, before they were divided by it

    def place(self, z_NZ: np.ndarray) -> list[tuple[float, float]]:
        """Where latents lie on the map; what would lie far outside is drawn to its border."""
        border = (1, self.height)
        return [(float(x), float(y)) for x, y in np.clip(self.axes.project(z_NZ) / self.reach, np.negative(border), border)]

    def place_way(self, ends_2Z: np.ndarray, t_S: Sequence[float]) -> list[tuple[float, float]]:
        """Where the great circle between two latents runs on the map."""
        a_Z, b_Z = torch.from_numpy(ends_2Z)
        return self.place(slerp(a_Z, b_Z, torch.tensor(t_S, dtype=a_Z.dtype)).numpy())


def latent_map(pipeline: Pipeline, model: str, data: str, count: int, seed: int = 0) -> LatentMap:
    """A map of turns of a corpus or, where none is known, of turns drawn from the prior.

    Args:
        model: what `pipeline` was loaded from: a run tells its corpus.
        data: a prepared corpus; empty: the run's, if it is still there.
        count: of sentences.
        seed: of turns that are drawn.

    Raises:
        UserError: the corpus that was asked for cannot be read, or there are fewer than two different sentences.
        ModelError: the model has no latent.
    """
    texts, source = turns_of(pipeline, model, data, count, seed)
    means_NZ = pipeline.encode(texts)[0] if texts else np.zeros((0, pipeline.model.config.latent_size))
    axes = principal_components(means_NZ)
    points_N2 = axes.project(means_NZ)
    wide, tall = 1.05 * np.maximum(np.abs(points_N2).max(0), 1e-6)
    reach = float(max(wide, tall))
    return LatentMap(texts, points_N2 / reach, max(float(tall) / reach, 0.5), source, axes, reach)


def turns_of(pipeline: Pipeline, model: str, data: str, count: int, seed: int) -> tuple[list[str], str]:
    """Up to `count` different sentences, and where they come from."""
    try:
        corpus = Corpus(data or corpus_of(Path(model)))
        split = next((name for name in ("test", "validation") if len(corpus[name].turns) > count), "train")
        return list(_different(even_turns(pipeline, corpus, split, count))), f"turns of the corpus ({split})"
    except UserError:
        if data:
            raise
    drawn = (sample.text for sample in pipeline.sample(_DRAWN * count, seed=seed) if sample.text)
    return list(islice(_different(drawn), count)), "turns drawn from the model"


def _different(texts: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for text in texts:
        if text not in seen:
            seen.add(text)
            yield text
