"""Pipeline: text in, text out. Tokenizer, model and the jobs users have; every face of the program stands on it.

Limits on what is asked for are enforced here, so that no face can forget one.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vrae.config import GREEDY, CleaningConfig, DecodingConfig, from_dict
from vrae.corpus.batches import Batch, Window, collate
from vrae.corpus.cleaning import Cleaner
from vrae.corpus.tokenizer import Tokenizer
from vrae.errors import ModelError, UserError
from vrae.generation.decoding import Decoded, decode
from vrae.generation.latent import lerp, slerp
from vrae.model.folder import CONFIG, TOKENIZER, WEIGHTS, read
from vrae.model.gaussian import Density, divergence, join, repeat, select
from vrae.model.vrae import VRAE

DEMO_MODEL = "vrae-demo/model"  # where `vrae demo` leaves its model
MAX_CHARACTERS = 2000
MAX_TURNS = 1000
MAX_SAMPLES = 10_000
MAX_REPLIES = 256
MAX_STEPS = 200
_ROWS = 256  # texts decoded side by side
_ROUNDS = 6  # draws until n distinct replies are found


@dataclass(frozen=True)
class Reply:
    """One reply to a context."""

    text: str
    log_prob: float  # nats, log p(reply | z, context) under the model as it is
    score: float  # what replies are ordered by, highest first
    tokens: int  # pieces, without the end mark


@dataclass(frozen=True)
class Sample:
    """One turn drawn from the prior."""

    text: str
    log_prob: float  # nats, log p(text | z)


@dataclass(frozen=True)
class Reconstruction:
    """A turn, and what the decoder makes of its posterior mean."""

    text: str
    reconstruction: str
    exact: bool  # the ids are the same
    rate: float  # nats, KL(q(z | text) || p(z))
    distortion: float  # nats, -log p(text | z) at the posterior mean


@dataclass(frozen=True)
class Step:
    """One point of a path."""

    t: float  # 0 the first sentence, 1 the second
    text: str


class Pipeline:
    """A trained model, ready to use.

    Args:
        model: in whatever mode; it is put in eval mode.
        tokenizer: the one it was trained with.
        info: `config.json` of the model folder; the cleaning that its corpus went through is applied to new text.

    Example:
        >>> import vrae
        >>> model = vrae.load("vrae-demo/model")
        >>> replies = model.respond(["Hi!", "Hello, how was your weekend?"], n=5, seed=1)
        >>> len(replies), replies[0].log_prob >= replies[-1].log_prob
        (5, True)
        >>> path = model.interpolate("i am going home", "what do you want to eat?", steps=5)
        >>> [step.t for step in path]
        [0.0, 0.25, 0.5, 0.75, 1.0]
        >>> means, log_vars = model.encode(["i am going home", "see you"])
        >>> means.shape == log_vars.shape == (2, model.model.config.latent_size)
        True
    """

    def __init__(self, model: VRAE, tokenizer: Tokenizer, info: dict[str, Any]) -> None:
        self.model, self.tokenizer, self.info = model.eval(), tokenizer, info
        corpus = info.get("corpus")
        cleaning = corpus.get("cleaning", {}) if isinstance(corpus, dict) else {}
        self._cleaner = Cleaner(from_dict(CleaningConfig, cleaning, "config.json: corpus.cleaning"))

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Pipeline:
        """Reads a model folder, or the best checkpoint of a run folder. Raises ModelError."""
        return cls(*read(model_folder(Path(folder)), device))

    def respond(
        self,
        context: str | Sequence[str],
        n: int = 5,
        *,
        seed: int | None = None,
        decoding: DecodingConfig | None = None,
    ) -> list[Reply]:
        """Up to `n` different replies to a dialogue (its turns, oldest first), the most probable first.

        Each comes from a latent of its own, drawn from p(z | context). A duplicate is drawn again, six times at most, so
        a model that knows fewer replies than asked for gives fewer.

        Raises:
            UserError: no turn, too many, too long, or n out of range.
            ModelError: the model reads no context (context_turns 0).
        """
        return self.respond_many([context], n, seed=seed, decoding=decoding)[0]

    def respond_many(
        self,
        contexts: Sequence[str | Sequence[str]],
        n: int = 5,
        *,
        seed: int | None = None,
        decoding: DecodingConfig | None = None,
    ) -> list[list[Reply]]:
        """`respond` for many contexts at once. With a seed, a context's replies do not depend on the others."""
        decoding = decoding or DecodingConfig()
        if not self.model.config.context_turns:
            raise ModelError("this model reads no context (model.context_turns is 0): use sample, reconstruct, interpolate")
        _in_range("n", n, 1, MAX_REPLIES)
        seed = _seed(seed)
        windows = [self._window("", _turns(context)) for context in contexts]
        if not windows:
            return []
        batch = self._batch(windows)
        with torch.inference_mode():
            prior, context_BC = self.model.condition(batch)
        found: list[dict[str, Reply]] = [{} for _ in contexts]
        for attempt in range(_ROUNDS):
            open_rows = [b for b, replies in enumerate(found) if len(replies) < n]
            if not open_rows:
                break
            rows = torch.tensor(open_rows, device=context_BC.device)
            own = [
                self._noise([seed, attempt, _digest(windows[b])], n, prior.noise_size, decoding.max_tokens) for b in open_rows
            ]
            noise = [torch.cat(parts) for parts in zip(*own, strict=True)]
            z_BZ = repeat(select(prior, rows), n).sample(noise[0])
            drawn = self._decode(z_BZ, context_BC[rows].repeat_interleave(n, 0), noise[1], decoding)
            for place, text in enumerate(drawn):
                reply = Reply(self.tokenizer.decode(text.ids), text.log_prob, text.log_prob, len(text.ids))
                replies = found[open_rows[place // n]]
                if reply.text and len(replies) < n:
                    replies.setdefault(_normal(reply.text), reply)
        return [sorted(replies.values(), key=lambda reply: -reply.score) for replies in found]

    def sample(self, n: int = 5, *, seed: int | None = None, decoding: DecodingConfig | None = None) -> Iterator[Sample]:
        """`n` turns from the prior (without context). Raises UserError when n is out of range."""
        decoding = decoding or DecodingConfig()
        _in_range("n", n, 1, MAX_SAMPLES)
        return self._sample(n, _seed(seed), decoding)

    def _sample(self, n: int, seed: int, decoding: DecodingConfig) -> Iterator[Sample]:
        batch = self._batch([self._window("", ())])
        with torch.inference_mode():
            prior, context_1C = self.model.condition(batch)
        for start in range(0, n, _ROWS):
            rows = min(_ROWS, n - start)
            noise = self._noise([seed, start], rows, prior.noise_size, decoding.max_tokens)
            drawn = self._decode(repeat(prior, rows).sample(noise[0]), context_1C.expand(rows, -1), noise[1], decoding)
            for text in drawn:
                yield Sample(self.tokenizer.decode(text.ids), text.log_prob)

    def reconstruct(self, texts: Sequence[str]) -> list[Reconstruction]:
        """Encodes each text, without context, and decodes the posterior mean greedily.

        Raises:
            ModelError: the model has no latent.
        """
        windows = [self._window(text, ()) for text in self._latent(texts)]
        results: list[Reconstruction] = []
        for start in range(0, len(texts), _ROWS):
            batch = self._batch(windows[start : start + _ROWS])
            with torch.inference_mode():
                inferred = self.model.infer(batch)
                mean_BZ, context_BC = inferred.posterior.mean_BZ, inferred.context_BC
                noise_BN = self._noise([0], len(mean_BZ), inferred.posterior.noise_size, 0)[0]
                z_BZ = inferred.posterior.sample(noise_BN)
                rates = divergence(inferred.posterior, inferred.prior, z_BZ).sum(-1).tolist()
                log_probs = self.model.log_prob(batch, mean_BZ, context_BC).tolist()
            decoded = self._decode(mean_BZ, context_BC, None, GREEDY)
            for i, text in enumerate(decoded):
                exact = text.finished and text.ids == windows[start + i].target.tolist()
                written = self.tokenizer.decode(text.ids)
                results.append(Reconstruction(texts[start + i], written, exact, rates[i], -log_probs[i]))
        return results

    def interpolate(self, a: str, b: str, steps: int = 7, *, method: Literal["slerp", "lerp"] = "slerp") -> list[Step]:
        """`steps` texts on the path from `a` to `b`, both included as the model reconstructs them, decoded greedily.

        Raises:
            UserError: fewer than 2 steps or more than 200.
            ModelError: the model has no latent.
        """
        _in_range("steps", steps, 2, MAX_STEPS)
        if method not in ("slerp", "lerp"):
            raise UserError(f"method must be slerp or lerp. Got {method!r}")
        mean_BZ = self._encode([a, b]).mean_BZ
        t_S = torch.linspace(0, 1, steps, device=mean_BZ.device)
        path_SZ = (slerp if method == "slerp" else lerp)(mean_BZ[0], mean_BZ[1], t_S)
        with torch.inference_mode():
            context_1C = self.model.condition(self._batch([self._window("", ())]))[1]
        decoded = self._decode(path_SZ, context_1C.expand(steps, -1), None, GREEDY)
        return [Step(t, self.tokenizer.decode(text.ids)) for t, text in zip(t_S.tolist(), decoded, strict=True)]

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Means and log-variances of q(z | text), without context, each [len(texts), Z] float32."""
        posterior = self._encode(texts)
        return posterior.mean_BZ.cpu().numpy(), posterior.log_var_BZ.cpu().numpy()

    def _encode(self, texts: Sequence[str]) -> Density:
        windows = [self._window(text, ()) for text in self._latent(texts)]
        with torch.inference_mode():
            parts = [
                self.model.infer(self._batch(windows[start : start + _ROWS])).posterior
                for start in range(0, len(windows), _ROWS)
            ]
        return join(parts)

    def _latent(self, texts: Sequence[str]) -> Sequence[str]:
        if not self.model.config.latent_size:
            raise ModelError("this model has no latent (model.latent_size is 0): it can respond and sample")
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise UserError(f"texts must be a list of strings. Got {type(texts).__name__}")
        if not texts:
            raise UserError("no text given")
        return texts

    def _decode(self, z_BZ: Tensor, context_BC: Tensor, noise_BT: Tensor | None, config: DecodingConfig) -> list[Decoded]:
        if noise_BT is None:
            noise_BT = z_BZ.new_zeros(len(z_BZ), config.max_tokens)
        texts: list[Decoded] = []
        with torch.inference_mode():
            for start in range(0, len(z_BZ), _ROWS):
                rows = slice(start, start + _ROWS)
                state = self.model.decoder.start(z_BZ[rows], context_BC[rows])
                texts += decode(self.model.decoder, state, noise_BT[rows], config)
        return texts

    def _noise(self, seed: list[int], rows: int, size: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Normal [rows, size] and uniform [rows, tokens] noise."""
        rng = np.random.default_rng(seed)
        normal = rng.standard_normal((rows, size), np.float32)
        uniform = rng.random((rows, tokens), np.float32)
        dtype, device = self.model.decoder.out.bias.dtype, self.model.device
        return torch.from_numpy(normal).to(device, dtype), torch.from_numpy(uniform).to(device)

    def _batch(self, windows: Sequence[Window]) -> Batch:
        return collate(list(windows), self.model.config.context_turns).to(self.model.device)

    def _window(self, target: str, context: Sequence[str]) -> Window:
        """Cleans and encodes. The speakers of a context are taken to alternate, the last one being the other."""
        context = context[max(len(context) - self.model.config.context_turns, 0) :]
        ids = [np.asarray(turn, np.int64) for turn in self.tokenizer.encode([self._text(t) for t in (target, *context)])]
        same_speaker = [(len(context) - i) % 2 == 0 for i in range(len(context))]
        return Window(ids[1:], ids[0], [int(same) for same in same_speaker])

    def _text(self, text: object) -> str:
        if not isinstance(text, str):
            raise UserError(f"a text must be a string. Got {type(text).__name__}")
        if len(text) > MAX_CHARACTERS:
            raise UserError(f"a text must have at most {MAX_CHARACTERS} characters. Got {len(text)}")
        return self._cleaner.text(text.encode("utf-8", "replace").decode())


def load(model: str | Path = DEMO_MODEL, device: str = "cpu") -> Pipeline:
    """A trained model, ready to use.

    Args:
        model: a model folder, a run folder (its best checkpoint is taken), or `owner/name` on the Hub, optionally
            `owner/name@revision`. Without it: what `vrae demo` left here.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        ModelError: there is no such model, or it is damaged.
    """
    path = Path(model)
    if not os.path.exists(path) and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", str(model)) and str(model) != DEMO_MODEL:
        path = _download(str(model))
    return Pipeline.load(path, device)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[CONFIG, WEIGHTS, TOKENIZER]))
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ModelError(
            f"--model {hub_id}: no such folder here, and not on the Hub either ({type(error).__name__}: {first_line:.150})"
        ) from None


def model_folder(path: Path) -> Path:
    """`path` itself where it holds a model, or the best (else last) checkpoint of the run in it. Raises ModelError."""
    # os.path answers False for a name that no file system would take, where Path raises
    if os.path.isfile(path / CONFIG):
        return path
    for pointer in ("best", "last"):
        try:
            name = (path / "checkpoints" / pointer).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            continue
        folder = path / "checkpoints" / Path(name).name
        if os.path.isfile(folder / CONFIG):
            return folder
    if not os.path.exists(path):
        raise ModelError(f"--model {path}: no such folder. Train a model first with `vrae demo` or `vrae train`")
    raise ModelError(f"--model {path}: neither a model folder (config.json) nor a run folder (checkpoints/best)")


def _digest(window: Window) -> int:
    """A number of the context, so that with one seed different dialogues get different latents."""
    return zlib.crc32(b"/".join(turn.tobytes() for turn in window.context))


def _normal(text: str) -> str:
    """What two texts must share to count as one reply: letters and digits."""
    return "".join(character for character in text.casefold() if character.isalnum()) or text


def _turns(context: object) -> Sequence[str]:
    """The turns of a context; a string is a context of one turn."""
    turns = [context] if isinstance(context, str) else context
    if not isinstance(turns, Sequence):
        raise UserError(f"a context must be a list of turns. Got {type(turns).__name__}")
    _in_range("number of turns", len(turns), 1, MAX_TURNS)
    return turns


def _in_range(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{name} must be a whole number from {low} to {high}. Got {value!r:.40}")


def _seed(seed: int | None) -> int:
    if seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UserError(f"seed must be a whole number from 0 to 2**63 - 1. Got {seed!r:.40}")
    return seed
