"""The jobs of a model that is served, for strangers too: what `vrae serve` offers as its JSON API, and works its page with.

Each takes and returns JSON values; what it returns has the keys that the command of the same name prints with `--json`. The
limits are here and in `Pipeline`, not in the page: whoever speaks to the server without it meets the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vrae.config import TALK, DecodingConfig, changed
from vrae.errors import UserError
from vrae.evaluation.score import score
from vrae.generation.attributes import Attribute, move
from vrae.generation.pipeline import Pipeline
from vrae.generation.text_model import in_range, need_list

MAX_TEXTS = 64  # samples, replies, variations: of one request
MAX_DRAWN = 256  # replies that are drawn for those that are returned
MAX_POINTS = 50  # of a path
MAX_K = 1000  # draws of z for a score
Result = dict[str, Any]


class Service:
    """A model and what may be asked of it. Every job raises UserError for what cannot be worked with.

    Args:
        pipeline: with a time limit; responds and scores.
        name: of the model, as it is shown; no path of this machine.
        attributes: directions of style, by their names; learnt with `space`.
        space: does what moves in a latent space; None: `pipeline` does that too.
    """

    def __init__(self, pipeline: Pipeline, name: str, attributes: dict[str, Attribute], space: Pipeline | None = None) -> None:
        self.pipeline, self.name, self.attributes, self.space = pipeline, name, attributes, space or pipeline

    @property
    def jobs(self) -> dict[str, Any]:
        """Those that this model can do, by name."""
        jobs = [self.about, self.sample, self.score]
        if self.pipeline.model.config.context_turns:
            jobs.append(self.respond)
        if self.space.model.config.latent_size:
            jobs += [self.reconstruct, self.interpolate, self.variations, self.analogy, self.encode]
        if self.attributes:
            jobs.append(self.move)
        return {job.__name__: job for job in jobs}

    def respond(
        self,
        context: list[str],
        n: int = 5,
        seed: int | None = None,
        temperature: float = TALK[0].temperature,
        top_p: float = TALK[0].top_p,
        rank: str = TALK[1].rank,
        candidates: int = TALK[1].candidates,
    ) -> Result:
        """Up to n different replies to a dialogue, its turns oldest first, the best reply first."""
        in_range("n", n, 1, MAX_TEXTS)
        responses = changed(TALK[1], "respond", rank=rank, candidates=candidates)
        in_range("n * candidates", n * candidates, 1, MAX_DRAWN)
        decoding = changed(TALK[0], "respond", temperature=temperature, top_p=top_p)
        found = self.pipeline.respond(context, n, seed=seed, decoding=decoding, responses=responses)
        keys = ("text", "log_prob", "score", "tokens")
        return {"context": context, "replies": [{key: getattr(reply, key) for key in keys} for reply in found]}

    def sample(
        self,
        n: int = 5,
        seed: int | None = None,
        temperature: float = 0.0,
        top_p: float = DecodingConfig.top_p,
    ) -> Result:
        """n turns, each from a latent of its own drawn from the prior; their words are drawn too at a temperature above 0."""
        in_range("n", n, 1, MAX_TEXTS)
        drawn = changed(DecodingConfig(), "sample", temperature=temperature, top_p=top_p)
        found = self.space.sample(n, seed=seed, decoding=drawn if temperature else None)
        return {"samples": [dataclasses.asdict(sample) for sample in found]}

    def reconstruct(self, text: str, n: int = 0, seed: int | None = None) -> Result:
        """What the model makes of a turn when it is encoded and decoded; and of n draws of the turn's posterior."""
        in_range("n", n, 0, MAX_TEXTS)
        found = dataclasses.asdict(self.space.reconstruct([text], n, seed=seed)[0])
        return {key: value for key, value in found.items() if n or key != "samples"}

    def interpolate(self, texts: list[str], steps: int = 7, method: str = "slerp", context: list[str] | None = None) -> Result:
        """The path between two turns in the latent space."""
        _need("interpolate", texts, 2)
        in_range("steps", steps, 2, MAX_POINTS)
        a, b = texts
        path = self.space.interpolate(a, b, steps, method=method, context=_turns(context))  # type: ignore[arg-type]  # it checks the method
        return {"steps": [dataclasses.asdict(step) for step in path]}

    def variations(
        self,
        text: str,
        n: int = 5,
        radius: float = 0.5,
        seed: int | None = None,
        context: list[str] | None = None,
    ) -> Result:
        """Up to n texts from around a turn in the latent space, the most probable first."""
        in_range("n", n, 1, MAX_TEXTS)
        found = self.space.variations(text, n, radius=radius, seed=seed, context=_turns(context))
        return {"text": text, "variations": [dataclasses.asdict(sample) for sample in found]}

    def analogy(self, texts: list[str]) -> Result:
        """The turn at a - b + c: as a is to b, it is to c."""
        _need("analogy", texts, 3)
        return {"texts": texts, **dataclasses.asdict(self.space.analogy(*texts))}

    def encode(self, text: str, context: list[str] | None = None) -> Result:
        """Mean and log-variance of a turn's posterior, a number for each latent dimension."""
        means, log_vars = self.space.encode([text], [_turns(context)])
        return {"text": text, "mean": means[0].tolist(), "log_var": log_vars[0].tolist()}

    def score(self, text: str, context: list[str] | None = None, k: int = 100, seed: int = 0) -> Result:
        """The bits that it takes to send a turn: of its latent, of the text once the latent is known, and the two bounds."""
        in_range("k", k, 1, MAX_K)
        return dataclasses.asdict(score(self.pipeline, [text], [_turns(context)], k=k, seed=seed)[0])

    def move(self, text: str, attribute: str, strength: float = 1.0, along: str = "means") -> Result:
        """A sentence moved along one of the served styles."""
        known = ", ".join(self.attributes)
        if not isinstance(attribute, str) or attribute not in self.attributes:
            raise UserError(f"attribute must be one of {known}. Got {attribute!r:.40}")
        found = move(self.space, [text], self.attributes[attribute], strength, along=along)  # type: ignore[arg-type]  # it checks along
        return dataclasses.asdict(found[0])

    def about(self) -> Result:
        """What the model is, and which styles it can be moved along."""
        parameters = sum(tensor.numel() for tensor in self.pipeline.model.parameters())
        styles = {name: list(attribute.labels) for name, attribute in self.attributes.items()}
        return {"name": self.name, "parameters": parameters, "attributes": styles, **self.pipeline.info}


def _need(job: str, texts: list[str], count: int) -> None:
    need_list("texts", texts)
    if len(texts) != count:
        raise UserError(f"{job} takes {count} turns. Got {len(texts)}")


def _turns(context: list[str] | None) -> list[str]:
    return [] if context is None else context
