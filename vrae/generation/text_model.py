"""A model with its tokenizer: text to windows and densities, latents to text.

Everything that the jobs of `Pipeline` share passes through here, and so do the limits on what may be asked for: no face of the
program can forget one.

Shape legend: B texts, T tokens, Z latent, C context state, X noise numbers of a text.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from vrae.config import BatchConfig, CleaningConfig, DecodingConfig, from_dict
from vrae.corpus.batches import Batch, Window, collate
from vrae.corpus.cleaning import Cleaner
from vrae.corpus.tokenizer import Tokenizer
from vrae.errors import ModelError, UserError
from vrae.generation.deadline import check_limit, check_time, timed_steps
from vrae.generation.decoding import Decoded, decode
from vrae.model.bound import Draws, Noise, draw
from vrae.model.folder import weights
from vrae.model.gaussian import Density, join
from vrae.model.vrae import VRAE, Inferred

MAX_CHARACTERS = 2000
MAX_TURNS = 1000
MAX_SAMPLES = 10_000
MAX_REPLIES = 256
MAX_CANDIDATES = 1024
MAX_STEPS = 200
MAX_LATENT = 1e6  # in size; a draw of the prior lies within ten, and numbers far beyond overflow in the decoder
_ROWS = 256  # texts encoded or decoded side by side


class TextModel:
    """Model, tokenizer and the cleaning that the model's corpus went through.

    Args:
        model: in whatever mode; it is put in eval mode.
        tokenizer: the one it was trained with.
        info: `config.json` of the model folder; the cleaning that its corpus went through is applied to new text.
        max_seconds: a job that takes longer ends with a UserError soon after; None: no limit.
    """

    def __init__(self, model: VRAE, tokenizer: Tokenizer, info: dict[str, Any], *, max_seconds: float | None = None) -> None:
        check_limit(max_seconds)
        self.model, self.tokenizer, self.info, self.max_seconds = model.eval(), tokenizer, info, max_seconds
        corpus = info.get("corpus")
        cleaning = corpus.get("cleaning", {}) if isinstance(corpus, dict) else {}
        self.cleaner = Cleaner(from_dict(CleaningConfig, cleaning, "config.json: corpus.cleaning"))

    @property
    def longest_turn(self) -> int:
        """The most tokens that a turn had in training; the default of `BatchConfig` where `info` says no such number."""
        run = self.info.get("run")
        trained = run.get("batches") if isinstance(run, dict) else None
        limit = trained.get("max_turn_tokens") if isinstance(trained, dict) else None
        return limit if type(limit) is int and 0 < limit <= MAX_CHARACTERS else BatchConfig().max_turn_tokens

    def windows(self, texts: Sequence[str], contexts: Sequence[str | Sequence[str]] | None = None) -> list[Window]:
        """Each text as a target, cleaned and encoded, after its context (its turns, oldest first; empty: none).

        Only the last `context_turns` turns of a context are read. Speakers are taken to alternate, the last turn of a context
        being the other's.

        Raises:
            UserError: a text or a context is no text, too long, or there are too many or too few of them.
            ModelError: there is a context, and the model reads none.
        """
        need_list("texts", texts)
        if contexts is None:
            return [self._window(text, ()) for text in texts]
        need_list("contexts", contexts)
        turns = [_turns(context) for context in contexts]
        if len(turns) != len(texts):
            raise UserError(f"contexts must be a list with one entry for each of the {len(texts)} texts. Got {len(turns)}")
        if any(turns):
            self.need_context()
        return [self._window(text, context) for text, context in zip(texts, turns, strict=True)]

    def need_context(self) -> None:
        """Raises ModelError where the model reads no context."""
        if not self.model.config.context_turns:
            raise ModelError("this model reads no context (model.context_turns is 0): use sample, reconstruct, interpolate")

    def need_latent(self) -> None:
        """Raises ModelError where the model has no latent."""
        if not self.model.config.latent_size:
            raise ModelError("this model has no latent (model.latent_size is 0): it can respond and sample")

    def batch(self, windows: Sequence[Window]) -> Batch:
        return collate(list(windows), self.model.config.context_turns).to(self.model.device)

    @torch.inference_mode()
    def condition(self, windows: Sequence[Window]) -> tuple[Density, Tensor]:
        """p(z | c) and c of each window, whatever its target; at least one window."""
        parts = [self.model.condition(self.batch(some)) for some in _parts(windows)]
        priors, contexts = zip(*parts, strict=True)
        return join(priors), torch.cat(contexts)

    @torch.inference_mode()
    def infer(self, windows: Sequence[Window]) -> Inferred:
        """q(z | x, c), p(z | c) and c of each window; at least one window."""
        parts = [self.model.infer(self.batch(some)) for some in _parts(windows)]
        posteriors, priors, contexts = zip(*parts, strict=True)
        return Inferred(join(posteriors), join(priors), torch.cat(contexts))

    def evidence(self, windows: Sequence[Window], k: int, seed: int) -> list[float]:
        """log p(x | c) in nats of each window's target, end mark included: the bound of k draws from q (Burda et al. 2016).

        Without a latent it is exact. A window's value does not depend on the others.
        """
        return [value for _, found in self.draws(windows, k, seed) for value in found.log_mean_B.tolist()]

    def draws(self, windows: Sequence[Window], k: int, seed: int) -> Iterator[tuple[Batch, Draws]]:
        """The windows in batches, with what k draws of z from q(z | x, c) show of each; its noise is its own."""
        return timed_steps(self._draws(windows, k, seed), self.max_seconds)

    def _draws(self, windows: Sequence[Window], k: int, seed: int) -> Iterator[tuple[Batch, Draws]]:
        for some in _parts(windows):
            batch = self.batch(some)
            noise = _TimedNoise([seed, 0], np.array([digest(window) for window in some]))
            with torch.inference_mode():
                inferred = self.model.infer(batch)
                found = draw(self.model, batch, inferred, inferred.posterior, k, noise)
            yield batch, found

    def fingerprint(self) -> str:
        """sha256 of what a latent means to this model: its weights and tokenizer."""
        digest = hashlib.sha256(safetensors.torch.save(weights(self.model)))
        digest.update(self.tokenizer.model)
        return digest.hexdigest()

    @torch.inference_mode()
    def decode(self, z_BZ: Tensor, context_BC: Tensor, noise_BT: Tensor | None, config: DecodingConfig) -> list[Decoded]:
        """One text for each row of z. `noise_BT`: uniform numbers; None for greedy decoding and beam search."""
        return decode(self.model.decoder, self.model.decoder.start(z_BZ, context_BC), noise_BT, config)

    def noise(self, key: list[int], rows: int, size: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Standard normal [rows, size] and uniform [rows, tokens] numbers, a function of `key`."""
        rng = np.random.default_rng(key)
        normal = rng.standard_normal((rows, size), np.float32)
        uniform = rng.random((rows, tokens), np.float32)
        dtype, device = self.model.decoder.out.bias.dtype, self.model.device
        return torch.from_numpy(normal).to(device, dtype), torch.from_numpy(uniform).to(device)

    def _window(self, target: str, context: Sequence[str]) -> Window:
        context = context[max(len(context) - self.model.config.context_turns, 0) :]
        ids = [np.asarray(turn, np.int64) for turn in self.tokenizer.encode([self._text(t) for t in (target, *context)])]
        same_speaker = [(len(context) - i) % 2 == 0 for i in range(len(context))]
        return Window(ids[1:], ids[0], [int(same) for same in same_speaker])

    def _text(self, text: object) -> str:
        check_time()
        if not isinstance(text, str):
            raise UserError(f"a text must be a string. Got {type(text).__name__}")
        if len(text) > MAX_CHARACTERS:
            raise UserError(f"a text must have at most {MAX_CHARACTERS} characters. Got {len(text)}")
        return self.cleaner.text(text.encode("utf-8", "replace").decode())


class _TimedNoise(Noise):
    """Noise for as long as there is time: it is asked for between two batches of draws."""

    def draw(self, times: int, size: int) -> Tensor:
        check_time()
        return super().draw(times, size)


def _parts(windows: Sequence[Window]) -> Iterator[Sequence[Window]]:
    """As many as are worked on side by side."""
    for start in range(0, len(windows), _ROWS):
        check_time()
        yield windows[start : start + _ROWS]


def digest(window: Window) -> int:
    """A number of a text and its context, which their noise is made of: with one seed, different texts get different noise."""
    return zlib.crc32(b"/".join(np.asarray(turn, "<i8").tobytes() for turn in (*window.context, window.target)))


def need_list(name: str, values: object) -> None:
    """Raises UserError where `values` is no list (or tuple), or is one text."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise UserError(f"{name} must be a list of strings. Got {type(values).__name__}")


def need_numbers(name: str, values_NZ: object, most: float, Z: int) -> None:
    """Raises UserError where `values_NZ` is no array [N, Z] of real numbers, all of them at most `most` in size."""
    if not isinstance(values_NZ, np.ndarray) or values_NZ.dtype.kind not in "fiu":
        got = f"{type(values_NZ).__name__} {getattr(values_NZ, 'dtype', '')}".strip()
        raise UserError(f"{name} must be a numpy array of real numbers. Got {got}")
    if values_NZ.ndim != 2 or values_NZ.shape[1] != Z:
        raise UserError(f"{name} must have shape [N, {Z}]. Got {list(values_NZ.shape)}")
    if not (np.abs(values_NZ.astype(np.float64)) <= most).all():  # NaN is not either
        raise UserError(f"{name} must hold finite numbers of at most {most:g}")


def in_range(name: str, value: object, low: int, high: int) -> None:
    """Raises UserError where `value` is no whole number from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{name} must be a whole number from {low} to {high}. Got {value!r:.40}")


def seed_of(seed: int | None) -> int:
    """The seed, or for None a new one."""
    if seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    in_range("seed", seed, 0, 2**63 - 1)
    return seed


def _turns(context: object) -> Sequence[str]:
    """The turns of a context; a string is a context of one turn."""
    turns = [context] if isinstance(context, str) else context
    if not isinstance(turns, Sequence):
        raise UserError(f"a context must be a list of turns. Got {type(turns).__name__}")
    in_range("number of turns", len(turns), 0, MAX_TURNS)
    return turns
