"""Several replies to one context that differ in meaning: latents, texts, no two alike, ordered.

    z_1 .. z_m ~ p(z | c)        independent, stratified or spread
    y_i ~ p(y | z_i, c)          decoded side by side, for all contexts together
    y_i left out where an earlier one says nearly the same
    score(y_i, c)                likelihood, importance-weighted evidence, or evidence less that without the context

With one seed the replies to a context do not depend on the other contexts.

Shape legend: B contexts, P texts of all contexts, T tokens, Z latent, C context state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vrae.config import MAX_BEAMS, DecodingConfig, ResponseConfig
from vrae.corpus.batches import Window
from vrae.generation.deadline import check_time
from vrae.generation.decoding import Decoded, beam_search
from vrae.generation.latent import farthest, stratify
from vrae.generation.text_model import TextModel, digest
from vrae.model.gaussian import Density, repeat, select

_ROUNDS = 6  # draws until enough distinct replies are found
_OVERSAMPLE = 8  # latents that each spread one is chosen among


@dataclass(frozen=True)
class Reply:
    """One reply to a context."""

    text: str
    log_prob: float  # nats, log p(reply | z, context) under the model as it is, end mark included
    score: float  # nats, what replies are ordered by, highest first (`ResponseConfig.rank`)
    tokens: int  # pieces, without the end mark
    z: tuple[float, ...]  # the latent it was decoded from; empty where the model has none


@dataclass(frozen=True)
class _Candidate:
    text: str
    words: list[str]
    decoded: Decoded
    z: tuple[float, ...]


def respond(
    model: TextModel,
    windows: Sequence[Window],
    n: int,
    *,
    seed: int,
    decoding: DecodingConfig,
    responses: ResponseConfig,
    background: TextModel | None = None,
) -> list[list[Reply]]:
    """Up to `n` replies to the context of each window, the best first. The windows' targets are empty.

    Args:
        background: the model of log p(reply) that `mmi` subtracts; None: `model` with an empty context.
    """
    wanted = n * responses.candidates
    prior, context_BC = model.condition(windows)
    found: list[list[_Candidate]] = [[] for _ in windows]
    by_chance = model.model.config.latent_size or not (decoding.beams or decoding.temperature == 0)
    for attempt in range(_ROUNDS if by_chance else 1):  # what is not left to chance comes out the same again
        rows = [b for b, candidates in enumerate(found) if len(candidates) < wanted]
        if not rows:
            break
        keys = [[seed, attempt, digest(windows[b])] for b in rows]
        places = torch.tensor(rows, device=context_BC.device)
        drawn = draw_texts(model, select(prior, places), context_BC[places], wanted, keys, decoding, responses.latents)
        for b, texts in zip(rows, drawn, strict=True):
            for decoded, z in texts:
                if len(found[b]) < wanted:
                    _keep(model, found[b], decoded, z, responses.min_change)
    scores = iter(_scores(model, windows, found, responses, background, seed))
    replies = [
        [Reply(c.text, c.decoded.log_prob, next(scores), len(c.decoded.ids), c.z) for c in candidates] for candidates in found
    ]
    return [sorted(some, key=lambda reply: -reply.score)[:n] for some in replies]


@torch.inference_mode()
def draw_texts(
    model: TextModel,
    prior: Density,
    context_BC: Tensor,
    count: int,
    keys: Sequence[list[int]],
    decoding: DecodingConfig,
    latents: str,
) -> list[list[tuple[Decoded, tuple[float, ...]]]]:
    """`count` texts, each with its latent, for each context."""
    if decoding.beams and not model.model.config.latent_size:  # nothing but the search itself tells texts apart
        wide = dataclasses.replace(decoding, beams=min(max(decoding.beams, count), MAX_BEAMS))
        state = model.model.decoder.start(context_BC.new_zeros(len(context_BC), 0), context_BC)
        found = beam_search(model.model.decoder, state, wide, min(count, wide.beams))
        return [[(text, ()) for text in texts] for texts in found]
    z, uniform = [], []
    for b, key in enumerate(keys):
        check_time()
        own = select(prior, torch.tensor([b], device=context_BC.device))
        z.append(_latents(model, own, count, key, latents))
        uniform.append(model.noise([*key, 1], count, 0, decoding.max_tokens)[1])
    z_PZ = torch.cat(z)
    texts = model.decode(z_PZ, context_BC.repeat_interleave(count, 0), torch.cat(uniform), decoding)
    pairs = list(zip(texts, map(tuple, z_PZ.tolist()), strict=True))
    return [pairs[i : i + count] for i in range(0, len(pairs), count)]


def _latents(model: TextModel, prior: Density, count: int, key: list[int], how: str) -> Tensor:
    """[count, Z], draws of z from one context's prior."""
    many = count * _OVERSAMPLE if how == "spread" else count
    normal_MX, uniform_MX = model.noise([*key, 0], many, prior.noise_size, prior.noise_size)
    if how == "stratified":
        rng = np.random.default_rng([*key, 2])
        order = rng.permuted(np.tile(np.arange(many)[:, None], (1, prior.noise_size)), axis=0)
        normal_MX = stratify(uniform_MX, torch.from_numpy(order).to(uniform_MX.device)).to(normal_MX.dtype)
    z_MZ = repeat(prior, many).sample(normal_MX)
    if how == "spread":
        return z_MZ[farthest(z_MZ / (0.5 * prior.log_var_BZ).exp(), count)]
    return z_MZ


def _keep(model: TextModel, found: list[_Candidate], decoded: Decoded, z: tuple[float, ...], min_change: float) -> None:
    """Adds a text to those found, unless it is empty or near to one of them."""
    text = model.tokenizer.decode(decoded.ids)
    own = words(text)
    if text and not any(alike(own, old.words, min_change) for old in found):
        found.append(_Candidate(text, own, decoded, z))


def words(text: str) -> list[str]:
    """What two texts are compared by: their words in lower case, letters and digits alone; else the text itself."""
    letters = (word if word.isalnum() else "".join(filter(str.isalnum, word)) for word in text.casefold().split())
    return [word for word in letters if word] or [text]


def alike(a: Sequence[str], b: Sequence[str], min_change: float = 0.0) -> bool:
    """Whether two texts, as `words`, have the same letters, or a smaller share of their words than `min_change` differs."""
    check_time()  # of many texts each is compared with each
    return "".join(a) == "".join(b) or share_changed(a, b) < min_change - 1e-9  # the share of one word in five is not below 0.2


def share_changed(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """1 - longest common subsequence / longer length: 0 for the same tokens, 1 for none in common; 0 for two empty texts.

    A row of the table of lengths is one number, whose bit j is 0 where the length grows at token j of b (Hyyrö 2004).
    """
    places: dict[Hashable, int] = {}
    for j, y in enumerate(b):
        places[y] = places.get(y, 0) | 1 << j
    row = all_of_b = (1 << len(b)) - 1
    for x in a:
        met = row & places.get(x, 0)
        row = (row + met | row - met) & all_of_b
    return 1 - (len(b) - row.bit_count()) / max(len(a), len(b)) if a or b else 0.0


def _scores(
    model: TextModel,
    windows: Sequence[Window],
    found: Sequence[Sequence[_Candidate]],
    responses: ResponseConfig,
    background: TextModel | None,
    seed: int,
) -> list[float]:
    """The score of each candidate of each context in turn."""
    if responses.rank == "likelihood":
        return [candidate.decoded.log_prob for candidates in found for candidate in candidates]
    targets = [
        window._replace(target=np.asarray(candidate.decoded.ids, np.int64))
        for window, candidates in zip(windows, found, strict=True)
        for candidate in candidates
    ]
    scores = model.evidence(targets, responses.rank_samples, seed)
    if responses.rank == "importance_weighted" or not targets:
        return scores
    if background:
        alone = background.windows([candidate.text for candidates in found for candidate in candidates])
    else:
        alone = [Window([], target.target, []) for target in targets]
    without = (background or model).evidence(alone, responses.rank_samples, seed)
    return [given - responses.mmi_weight * free for given, free in zip(scores, without, strict=True)]
