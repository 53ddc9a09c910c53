"""Pipeline: text in, text out. The jobs users have; every face of the program stands on it.

    respond                                        several replies to a dialogue
    sample, reconstruct, encode, decode_latents    between text and latents
    interpolate, variations, analogy               moving among latents

With a seed, and but for rounding in the last digits, the text made of one input does not depend on what else is asked.

Shape legend: B texts, S steps, N points, Z latent.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vrae import bundled
from vrae.config import SEARCH, TALK, DecodingConfig, ResponseConfig, shown
from vrae.corpus.batches import Window
from vrae.corpus.sources import REVISION, is_hub_id, is_revision
from vrae.errors import ModelError, UserError
from vrae.files import MANIFEST, check_folder, first_sound
from vrae.generation.deadline import timed, timed_steps
from vrae.generation.decoding import Decoded
from vrae.generation.hub import download
from vrae.generation.latent import lerp, slerp, sphere
from vrae.generation.publishing import Publishing
from vrae.generation.responses import Reply, alike, respond, words
from vrae.generation.text_model import (
    MAX_CANDIDATES,
    MAX_LATENT,
    MAX_REPLIES,
    MAX_SAMPLES,
    MAX_STEPS,
    MAX_TURNS,
    TextModel,
    digest,
    in_range,
    need_list,
    need_numbers,
    seed_of,
)
from vrae.model.folder import CONFIG, TOKENIZER, WEIGHTS, read
from vrae.model.gaussian import divergence, repeat

_ROWS = 256  # samples drawn at a time
_ROUNDS = 6  # draws until enough distinct variations are found


@dataclass(frozen=True)
class Sample:
    """One turn that was decoded from a latent."""

    text: str
    log_prob: float  # nats, log p(text | z), end mark included


@dataclass(frozen=True)
class Reconstruction:
    """A turn, and what the decoder makes of its posterior."""

    text: str
    reconstruction: str  # of the posterior mean
    exact: bool  # the ids are the same
    rate: float  # nats, KL(q(z | text) || p(z))
    distortion: float  # nats, -log p(text | z) at the posterior mean
    samples: tuple[str, ...]  # of draws of z from the posterior


@dataclass(frozen=True)
class Step:
    """One point of a path."""

    t: float  # 0 the first sentence, 1 the second
    text: str
    log_prob: float  # nats, log p(text | z), end mark included
    cosine: float  # between z and the posterior mean of `text`: does the sentence lead back to the point it was decoded from?
    exact: bool  # `text` itself comes back word for word when it is encoded and decoded


class Pipeline(Publishing):
    """A trained model, ready to use.

    Examples:
        >>> import vrae
        >>> model = vrae.load()
        >>> replies = model.respond(["Hi!", "Hello, how was your weekend?"], n=5, seed=1)
        >>> len(replies), replies[0].score >= replies[-1].score
        (5, True)
        >>> path = model.interpolate("i am going home", "what do you want to eat?", steps=5)
        >>> [step.t for step in path]
        [0.0, 0.25, 0.5, 0.75, 1.0]
        >>> means, log_vars = model.encode(["i am going home", "see you"])
        >>> means.shape == log_vars.shape == (2, model.model.config.latent_size)
        True
    """

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", *, max_seconds: float | None = None) -> Pipeline:
        """Reads a model folder, or the best checkpoint of a run folder. Raises ModelError."""
        return cls(*read(model_folder(Path(folder)), device), max_seconds=max_seconds)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str = "",
        device: str = "cpu",
        token: str | None = None,
        cache_dir: str | Path | None = None,
        max_seconds: float | None = None,
    ) -> Pipeline:
        """Reads a folder that is here, or `owner/name` on the Hub.

        Weights are read from a safetensors file alone, a key in config.json that is not known is refused, and files that are
        not as the manifest beside them says are refused too. The cache and being offline are the Hub library's own: HF_HOME,
        HF_HUB_OFFLINE.

        Args:
            model: a model folder, a run folder, or `owner/name`. What is here comes first.
            revision: on the Hub: a branch, tag or commit. A commit is what nobody can change later.
            device: `cpu`, `cuda` or `cuda:N`.
            token: of a user who may read it; None: the one that is logged in.
            cache_dir: where what is fetched is kept; None: the Hub library's place.
            max_seconds: as in `load`.

        Raises:
            ModelError: there is no such model, it may not be read, it is damaged, or the Hub cannot be reached.
        """
        if os.path.exists(model):
            if revision:
                raise ModelError(f"--model {model}: a folder here has no revision ({shown(revision)}). Leave it out")
            return cls.load(model, device, max_seconds=max_seconds)
        return cls.load(download(str(model), revision, token=token, cache_dir=cache_dir), device, max_seconds=max_seconds)

    def respond(
        self,
        context: str | Sequence[str],
        n: int = 5,
        *,
        seed: int | None = None,
        decoding: DecodingConfig | None = None,
        responses: ResponseConfig | None = None,
        background: TextModel | None = None,
    ) -> list[Reply]:
        """Up to `n` different replies to a dialogue (its turns, oldest first), the best first.

        Each comes from a latent of its own, drawn from p(z | context). What resembles an earlier reply too much is drawn again,
        six times at most, so a model that knows fewer replies than asked for gives fewer.

        Args:
            context: at least one turn; a string is a dialogue of one turn.
            n: 1 to 256.
            seed: the same seed, the same replies; None: others every time.
            decoding: how text is drawn once z is known; None: as `vrae respond` does (`vrae.config.TALK`).
            responses: how latents are drawn and replies ordered; None: likewise. `ResponseConfig()` draws no more than it gives
                and ranks by likelihood, in a fraction of the time.
            background: with `mmi`, a model of replies without their context (`context_turns` 0); None: this model itself.

        Raises:
            UserError: no turn, too many, too long, or n out of range.
            ModelError: the model reads no context (context_turns 0).
        """
        return self.respond_many([context], n, seed=seed, decoding=decoding, responses=responses, background=background)[0]

    @timed
    def respond_many(
        self,
        contexts: Sequence[str | Sequence[str]],
        n: int = 5,
        *,
        seed: int | None = None,
        decoding: DecodingConfig | None = None,
        responses: ResponseConfig | None = None,
        background: TextModel | None = None,
    ) -> list[list[Reply]]:
        """`respond` for many contexts at once. With a seed, a context's replies do not depend on the others."""
        self.need_context()
        in_range("n", n, 1, MAX_REPLIES)
        decoding, responses = decoding or TALK[0], responses or TALK[1]
        if n * responses.candidates > MAX_CANDIDATES:
            raise UserError(f"n * candidates must be at most {MAX_CANDIDATES}. Got {n} * {responses.candidates}")
        need_list("contexts", contexts)
        seed, windows = seed_of(seed), self.windows([""] * len(contexts), contexts)
        for context in contexts:
            in_range("number of turns", 1 if isinstance(context, str) else len(context), 1, MAX_TURNS)
        if not windows:
            return []
        return respond(self, windows, n, seed=seed, decoding=decoding, responses=responses, background=background)

    def sample(self, n: int = 5, *, seed: int | None = None, decoding: DecodingConfig | None = None) -> Iterator[Sample]:
        """`n` turns from the prior (without context).

        Args:
            n: 1 to 10,000.
            seed: of the draws.
            decoding: how text is written. None: by the search for the most probable text of each latent, whose draws are what
                makes the texts differ; a model without a latent draws the words (`DecodingConfig()`).

        Raises:
            UserError: n out of range, or there is nothing that more than one text could differ by: no latent, and a decoding
                that draws no words.
        """
        in_range("n", n, 1, MAX_SAMPLES)
        decoding = decoding or (SEARCH if self.model.config.latent_size else DecodingConfig())
        if n > 1 and not self.model.config.latent_size and not _draws(decoding):
            raise UserError(
                f"n {n}: this model has no latent (model.latent_size is 0), and without drawing words all its texts are the "
                "same. Set beams to 0 and a temperature above 0, or n to 1"
            )
        return timed_steps(self._sample(n, seed_of(seed), decoding), self.max_seconds)

    def _sample(self, n: int, seed: int, decoding: DecodingConfig) -> Iterator[Sample]:
        prior, context_1C = self.condition([_NOTHING])
        for start in range(0, n, _ROWS):
            rows = min(_ROWS, n - start)
            normal_BX, uniform_BT = self.noise([seed, start], rows, prior.noise_size, decoding.max_tokens)
            yield from self._texts(repeat(prior, rows).sample(normal_BX), context_1C, decoding, uniform_BT)

    @timed
    def reconstruct(
        self, texts: Sequence[str], n: int = 0, *, seed: int | None = None, decoding: DecodingConfig = SEARCH
    ) -> list[Reconstruction]:
        """Encodes each text, without context, and decodes its posterior mean, and `n` draws of its posterior.

        Args:
            texts: turns.
            n: 0 to 256.
            seed: of the draws.
            decoding: how text is written, without drawing: greedily, or by a beam search.

        Raises:
            UserError: no text, one too long, n out of range, or `decoding` draws.
            ModelError: the model has no latent.
        """
        in_range("n", n, 0, MAX_REPLIES)
        _check_draws_nothing(decoding)
        windows, seed = self._latent_windows(texts), seed_of(seed)
        parts = (slice(i, i + _ROWS) for i in range(0, len(windows), _ROWS))
        return [result for part in parts for result in self._reconstruct(texts[part], windows[part], n, seed, decoding)]

    @torch.inference_mode()
    def _reconstruct(
        self, texts: Sequence[str], windows: list[Window], n: int, seed: int, decoding: DecodingConfig
    ) -> list[Reconstruction]:
        batch = self.batch(windows)
        posterior, prior, context_BC = self.model.infer(batch)
        mean_BZ = posterior.mean_BZ
        z_BZ = posterior.sample(self._noise_of(windows, [0], 1, posterior.noise_size))
        rate_B = divergence(posterior, prior, z_BZ).sum(-1)
        log_prob_B = self.model.log_prob(batch, mean_BZ, context_BC)
        decoded = self.decode(mean_BZ, context_BC, None, decoding)
        drawn = []
        if n:
            z_PZ = repeat(posterior, n).sample(self._noise_of(windows, [seed], n, posterior.noise_size))
            drawn = self.decode(z_PZ, context_BC.repeat_interleave(n, 0), None, decoding)
        return [
            Reconstruction(
                text=texts[i],
                reconstruction=self.tokenizer.decode(decoded[i].ids),
                exact=_is(decoded[i], windows[i]),
                rate=float(rate_B[i]),
                distortion=-float(log_prob_B[i]),
                samples=tuple(self.tokenizer.decode(sample.ids) for sample in drawn[i * n : (i + 1) * n]),
            )
            for i in range(len(texts))
        ]

    @timed
    @torch.inference_mode()
    def interpolate(
        self,
        a: str,
        b: str,
        steps: int = 7,
        *,
        method: Literal["slerp", "lerp"] = "slerp",
        context: str | Sequence[str] = (),
        decoding: DecodingConfig = SEARCH,
    ) -> list[Step]:
        """`steps` texts on the path from `a` to `b`, both included as the model reconstructs them.

        Args:
            a: a turn, or with a context a reply to it.
            b: another.
            steps: 2 to 200.
            method: along the great circle or the straight line between the posterior means.
            context: the turns before, oldest first; none: the path of a sentence by itself.
            decoding: how text is written, without drawing: greedily, or by a beam search.

        Raises:
            UserError: fewer than 2 steps or more than 200, or `decoding` draws.
            ModelError: the model has no latent, or there is a context and it reads none.
        """
        check_path(steps, method)
        _check_draws_nothing(decoding)
        windows = self._latent_windows([a, b], [context, context])
        ends = self.infer(windows)
        mean_BZ, context_SC = ends.posterior.mean_BZ, ends.context_BC[:1].expand(steps, -1)
        t_S = torch.linspace(0, 1, steps, device=mean_BZ.device)
        path_SZ = (slerp if method == "slerp" else lerp)(mean_BZ[0], mean_BZ[1], t_S)
        path = self.decode(path_SZ, context_SC, None, decoding)
        met = [windows[0]._replace(target=np.asarray(text.ids, np.int64)) for text in path]
        back_SZ = self.infer(met).posterior.mean_BZ
        again = self.decode(back_SZ, context_SC, None, decoding)
        cosines = torch.cosine_similarity(path_SZ, back_SZ, dim=-1).tolist()
        return [
            Step(t_S[i].item(), self.tokenizer.decode(text.ids), text.log_prob, cosines[i], _is(again[i], met[i]))
            for i, text in enumerate(path)
        ]

    @timed
    @torch.inference_mode()
    def variations(
        self,
        text: str,
        n: int = 5,
        *,
        radius: float = 0.5,
        seed: int | None = None,
        context: str | Sequence[str] = (),
        decoding: DecodingConfig = SEARCH,
    ) -> list[Sample]:
        """Up to `n` texts from around `text` in the latent space, unlike it and each other, the most probable first.

        Args:
            text: a turn, or with a context a reply to it.
            n: 1 to 256.
            radius: how far from its posterior mean, in prior standard deviations of a dimension (root mean square): 0 is the
                sentence itself, and a draw of the prior lies about 1 from the prior's mean. At most 10.
            seed: of the directions.
            context: the turns before, oldest first.
            decoding: how text is written.

        Raises:
            UserError: n or radius out of range.
            ModelError: the model has no latent, or there is a context and it reads none.
        """
        check_ball(n, radius)
        seed = seed_of(seed)
        windows = self._latent_windows([text], [context])
        posterior, prior, context_1C = self.infer(windows)
        found: list[Sample] = []
        for attempt in range(_ROUNDS):
            key = [seed, attempt, digest(windows[0])]
            normal_NZ, uniform_NT = self.noise(key, n, self.model.config.latent_size, decoding.max_tokens)
            around_NZ = sphere(posterior.mean_BZ[0], (0.5 * prior.log_var_BZ[0]).exp(), radius, normal_NZ)
            for new in self._texts(around_NZ, context_1C, decoding, uniform_NT):
                if new.text and not any(alike(words(new.text), words(old)) for old in (text, *(s.text for s in found))):
                    found.append(new)
            if len(found) >= n:
                break
        return sorted(found[:n], key=lambda sample: -sample.log_prob)

    @timed
    def analogy(self, a: str, b: str, c: str) -> Sample:
        """The text at a - b + c of the posterior means, without context: as `a` is to `b`, it is to `c`.

        Raises:
            ModelError: the model has no latent.
        """
        means_3Z = self.encode([a, b, c])[0]
        return self.decode_latents((means_3Z[0] - means_3Z[1] + means_3Z[2])[None])[0]

    @timed
    @torch.inference_mode()
    def encode(
        self, texts: Sequence[str], contexts: Sequence[str | Sequence[str]] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means and log-variances of q(z | text, context), each [len(texts), Z]; without contexts, of the empty one.

        With a flow they are those of the Gaussian's image under it (`FlowPosterior`).

        Raises:
            UserError: no text, or another number of contexts.
            ModelError: the model has no latent, or there is a context and it reads none.
        """
        posterior = self.infer(self._latent_windows(texts, contexts)).posterior
        return posterior.mean_BZ.cpu().numpy(), posterior.log_var_BZ.cpu().numpy()

    @timed
    def decode_latents(self, z_NZ: np.ndarray, *, decoding: DecodingConfig = SEARCH, seed: int | None = None) -> list[Sample]:
        """The text at each point of the latent space, without context.

        Args:
            z_NZ: [N, Z] numbers of at most 1e6, N at most 10,000.
            decoding: how text is written.
            seed: of what is drawn, where `decoding` draws.

        Raises:
            UserError: another shape, or a number is larger or not finite.
            ModelError: the model has no latent.
        """
        self.need_latent()
        Z = self.model.config.latent_size
        need_numbers("latents", z_NZ, MAX_LATENT, Z)
        if len(z_NZ) > MAX_SAMPLES:
            raise UserError(f"latents must be at most {MAX_SAMPLES}. Got {len(z_NZ)}")
        if not len(z_NZ):
            return []
        uniform_NT = self.noise([seed_of(seed)], len(z_NZ), 0, decoding.max_tokens)[1]
        bias = self.model.decoder.out.bias
        return list(self._texts(torch.from_numpy(z_NZ).to(bias), self.condition([_NOTHING])[1], decoding, uniform_NT))

    def _texts(self, z_BZ: Tensor, context_1C: Tensor, decoding: DecodingConfig, uniform_BT: Tensor) -> Iterator[Sample]:
        for text in self.decode(z_BZ, context_1C.expand(len(z_BZ), -1), uniform_BT, decoding):
            yield Sample(self.tokenizer.decode(text.ids), text.log_prob)

    def _latent_windows(self, texts: Sequence[str], contexts: Sequence[str | Sequence[str]] | None = None) -> list[Window]:
        self.need_latent()
        windows = self.windows(texts, contexts)
        if not windows:
            raise UserError("no text given")
        return windows

    def _noise_of(self, windows: Sequence[Window], key: list[int], times: int, size: int) -> Tensor:
        """Standard normal numbers [len(windows) * times, size]; those of a window do not depend on the others."""
        return torch.cat([self.noise([*key, digest(window)], times, size, 0)[0] for window in windows])


_NOTHING = Window([], np.zeros(0, np.int64), [])


def _draws(decoding: DecodingConfig) -> bool:
    """Whether words are drawn, as opposed to searched for or the most probable ones taken."""
    return bool(decoding.temperature and not decoding.beams)


def _check_draws_nothing(decoding: DecodingConfig) -> None:
    if _draws(decoding):
        raise UserError(f"decoding must not draw: set temperature to 0, or beams. Got temperature {decoding.temperature:g}")


def _is(text: Decoded, window: Window) -> bool:
    """Whether the ids are those of the window's target, and end there."""
    return text.finished and text.ids == window.target.tolist()


def check_path(steps: object, method: object) -> None:
    """Raises UserError where `interpolate` would, whatever the texts."""
    in_range("steps", steps, 2, MAX_STEPS)
    if method not in ("slerp", "lerp"):
        raise UserError(f"method must be slerp or lerp. Got {method!r:.40}")


def check_ball(n: object, radius: object) -> None:
    """Raises UserError where `variations` would, whatever the text."""
    in_range("n", n, 1, MAX_REPLIES)
    if isinstance(radius, bool) or not isinstance(radius, (int, float)) or not 0 < radius <= 10:
        raise UserError(f"radius must be above 0 and at most 10. Got {radius!r:.40}")


def load(
    model: str | Path = "", device: str = "cpu", *, job: bundled.Job = "dialogue", max_seconds: float | None = None
) -> Pipeline:
    """A trained model, ready to use.

    Args:
        model: a model folder, a run folder (its best checkpoint is taken), the name of a model that comes with the package
            (`chitchat-vhred`, `chitchat-vrae`), or `owner/name` on the Hub, optionally `owner/name@revision`. What is here
            comes first.
        device: `cpu`, `cuda` or `cuda:N`.
        job: what it is for, where no model is named: `dialogue` (respond; chitchat-vhred) or `sentences` (sample,
            reconstruct, interpolate and whatever else moves in the latent space; chitchat-vrae).
        max_seconds: of wall-clock time, for any one job. It ends with a UserError soon after (checked between the tokens of
            texts and between batches), and the model can be used on. None: no limit.

    Raises:
        ModelError: there is no such model, or it is damaged.
    """
    if not str(model):
        if job not in bundled.NAMES:
            raise UserError(f"job must be {' or '.join(bundled.NAMES)}. Got {shown(job)}")
        model = bundled.NAMES[job]
    path, (name, at, revision) = Path(model), str(model).partition("@")
    if not os.path.exists(path) and (comes_with := bundled.folder(str(model))):
        path = comes_with
    elif not os.path.exists(path) and is_hub_id(name):
        if at and not is_revision(revision):
            raise ModelError(f"--model {name}@{shown(revision)}: no such folder here; on the Hub, @ goes before {REVISION}")
        path = download(name, revision)
    return Pipeline.load(path, device, max_seconds=max_seconds)


def model_folder(path: Path) -> Path:
    """`path` itself where it holds a model, else the best checkpoint of the run in it.

    One that is damaged is named on stderr, and the last is taken instead, else the newest that is whole.

    Raises:
        ModelError: there is none, or none is whole; each is named, with what is wrong with it.
    """
    # os.path answers False for a name that no file system would take, where Path raises
    if not os.path.exists(path):
        raise ModelError(
            f"--model {path}: no such folder, and no model that comes with vrae ({', '.join(bundled.NAMES.values())})"
        )
    files, checkpoints = (CONFIG, WEIGHTS, TOKENIZER), path / "checkpoints"
    if os.path.isfile(path / CONFIG):
        if os.path.isfile(path / MANIFEST) and (problem := check_folder(path, files)):
            raise ModelError(f"--model {path}: damaged ({problem})")
        return path
    names: list[str] = []
    for pointer in ("best", "last"):
        with contextlib.suppress(OSError, ValueError):
            names.append(Path((checkpoints / pointer).read_text(encoding="utf-8").strip()).name)
    names += sorted((folder.name for folder in checkpoints.glob("step-*")), reverse=True)
    candidates = dict.fromkeys(checkpoints / name for name in names if re.fullmatch(r"step-\d+", name))
    folder, damaged = first_sound(candidates, files)
    if folder is None:
        reason = "; ".join(damaged) or "neither a model folder (config.json) nor a run folder (checkpoints/best)"
        raise ModelError(f"--model {path}: {reason}")
    for line in damaged:
        print(f"vrae: warning: {line}; using {folder}", file=sys.stderr)
    return folder
