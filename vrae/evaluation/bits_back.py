"""Bits-back coding of one turn: put on a stack of bits in as many as the bound promises, and taken off again.

The sender makes three moves (Townsend, Bird & Barber 2019):

    1. take z off by q(z | x, c)      which gives back   -log2 q(z | x, c) bits
    2. put x there by p(x | z, c)     which takes        -log2 p(x | z, c) bits
    3. put z there by p(z | c)        which takes        -log2 p(z | c) bits

In the mean over z that is -elbo, in bits. The stack is the state of an ANS coder (Duda et al. 2015): decoding random bits by a
distribution draws from it, and encoding what was drawn restores the bits. Those that move 1 draws z from belong to turns put
there before. The receiver takes the moves back, the last one first, and so restores them.

Bits of text that the model foresees badly are not random, and z drawn from them would not follow q. So a pseudo-random number
that both sides know is added to the bits at hand before each dimension is drawn, and subtracted again when it is taken back.

z lies on a grid, in units of the prior's standard deviation. Both sides must compute the same floating-point numbers to the
last bit: both make the same calls, in the same shapes, for one turn at a time.

Shape legend: B windows, Z latent, C context state, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vrae.corpus.batches import Window, collate
from vrae.corpus.tokenizer import EOS
from vrae.errors import ModelError, UserError
from vrae.model.gaussian import Density, Gaussian
from vrae.model.vrae import VRAE

MAX_TOKENS = 2048  # of a turn, end mark included: the sender holds the decoder's outputs for all of them
MAX_REACH = 2**14  # of a grid: each place of it takes 2^-24 of the probability, however unlikely it is
_LEAST_BITS = 24  # a symbol is decoded by so many bits of the stack; if there are fewer, they are not all random
_SHIFT = 2**20  # the numbers that are added to the bits of a draw are below it
_DEVIATIONS = 6  # of a posterior that the grid has room for, on each side
_ROWS = 64  # windows in a batch, where numbers need not repeat
_NO_IDS = np.zeros(0, np.int64)


class Grid(NamedTuple):
    """The values of z: multiples of 2^-fineness prior standard deviations, counted from the prior mean."""

    fineness: int
    reach: int  # multiples on each side of the prior mean
    spread: int  # multiples on each side of a posterior mean


class StackError(Exception):
    """The stack holds less than is taken off it, or what no sender puts there."""


class Stack:
    """An ANS coder that keeps account: `growth` has the bits that each sort of symbol has put there, less those taken off.

    Args:
        words: uint32, what lies on it at first.
        seal: put one more word on top of them, without which not all of them could be told from an empty stack.

    Raises:
        UserError: constriction is not installed.
    """

    def __init__(self, words: np.ndarray, *, seal: bool = False) -> None:
        self._coder = entropy_coders().stack.AnsCoder(words, seal=seal)
        self.growth: defaultdict[str, float] = defaultdict(float)

    @property
    def bits(self) -> float:
        """What is on the stack: log2 of its state, a real number."""
        words, state = self._coder.pos()
        return 32 * words + math.log2(state) if state else 0.0

    @property
    def words(self) -> np.ndarray:
        """The same as uint32."""
        words: np.ndarray = self._coder.get_compressed()
        return words

    def push(self, sort: str, symbols: Sequence[int] | np.ndarray, model: Any, *parameters: np.ndarray) -> None:
        """The first symbol goes on last. Parameters, if the model has any, have a row for each symbol."""
        before = self.bits
        self._coder.encode_reverse(np.asarray(symbols, np.int32), model, *parameters)
        self.growth[sort] += self.bits - before

    def pop(self, sort: str, model: Any, *parameters: np.ndarray) -> np.ndarray:
        """As many symbols as the parameters have rows; one, if the model has no parameters. Raises StackError."""
        before = self.bits
        symbols = self._coder.decode(model, *parameters)
        after = self.bits
        self.growth[sort] += after - before
        if after < _LEAST_BITS:
            raise StackError
        return np.atleast_1d(np.asarray(symbols, np.int64))


class Probe(Stack):
    """A stack that also makes a digest of all parameters it is given."""

    def __init__(self, words: np.ndarray, *, seal: bool = False) -> None:
        super().__init__(words, seal=seal)
        self.sha256 = hashlib.sha256()

    def push(self, sort: str, symbols: Sequence[int] | np.ndarray, model: Any, *parameters: np.ndarray) -> None:
        self.sha256.update(b"".join(values.tobytes() for values in parameters))
        super().push(sort, symbols, model, *parameters)

    def pop(self, sort: str, model: Any, *parameters: np.ndarray) -> np.ndarray:
        self.sha256.update(b"".join(values.tobytes() for values in parameters))
        return super().pop(sort, model, *parameters)


class TurnCoder:
    """The three moves, and their reverse.

    Args:
        model: on the CPU, in eval mode.
        grid: of `fit_grid`, for the turns to come.
    """

    def __init__(self, model: VRAE, grid: Grid) -> None:
        family, Z = entropy_coders().model, model.config.latent_size
        self.model, self.grid, self.step = model, grid, 2.0**-grid.fineness
        self._by_prior = family.QuantizedGaussian(-grid.reach, grid.reach)
        self._by_posterior = family.QuantizedGaussian(-grid.spread, grid.spread)
        self._by_decoder = family.Categorical(perfect=False)
        self._evenly = family.Uniform(_SHIFT)
        self._prior_Z = np.zeros(Z), np.full(Z, 1 / self.step)

    def push(self, stack: Stack, window: Window, number: int) -> None:
        """Puts the target there, turn `number` of all. Raises StackError where the stack has not enough bits to draw z from."""
        prior, context_1C = self._condition(window)
        origin_Z, mean_Z, std_Z = self._posterior(window, prior)
        places_Z = origin_Z + self._draw(stack, mean_Z, std_Z, number)
        state = self.model.decoder.start(self._z(places_Z, prior), context_1C)
        ids, logits = [*window.target.tolist(), EOS], []
        for read in (self.model.decoder.first_tokens(1), *torch.tensor(ids[:-1])[:, None]):
            logits_1V, state = self.model.decoder.step(read, state)
            logits.append(logits_1V)
        for written, logits_1V in zip(reversed(ids), reversed(logits), strict=True):
            stack.push("tokens", [written], self._by_decoder, _probabilities(logits_1V))
        stack.push("prior", places_Z, self._by_prior, *self._prior_Z)

    def pop(self, stack: Stack, window: Window, number: int) -> np.ndarray:
        """Takes turn `number` off and returns its ids; of `window` only the context is read. Raises StackError."""
        prior, context_1C = self._condition(window)
        places_Z = stack.pop("prior", self._by_prior, *self._prior_Z)
        state = self.model.decoder.start(self._z(places_Z, prior), context_1C)
        ids: list[int] = []
        read = self.model.decoder.first_tokens(1)
        while True:
            logits_1V, state = self.model.decoder.step(read, state)
            written = int(stack.pop("tokens", self._by_decoder, _probabilities(logits_1V))[0])
            if written == EOS:
                break
            ids.append(written)
            if len(ids) >= MAX_TOKENS:
                raise StackError
            read = torch.tensor([written])
        target = np.array(ids, np.int64)
        origin_Z, mean_Z, std_Z = self._posterior(window._replace(target=target), prior)
        if np.any(abs(places_Z - origin_Z) > self.grid.spread):
            raise StackError
        self._restore(stack, places_Z - origin_Z, mean_Z, std_Z, number)
        return target

    def _draw(self, stack: Stack, mean_Z: np.ndarray, std_Z: np.ndarray, number: int) -> np.ndarray:
        """z by the posterior, as places counted from `origin_Z`."""
        drawn_Z = np.zeros(len(mean_Z), np.int64)
        for d, shift in enumerate(_shifts(number, len(mean_Z))):
            bits = int(stack.pop("posterior", self._evenly)[0])
            stack.push("posterior", [(bits + shift) % _SHIFT], self._evenly)
            drawn_Z[d : d + 1] = stack.pop("posterior", self._by_posterior, mean_Z[d : d + 1], std_Z[d : d + 1])
        return drawn_Z

    def _restore(self, stack: Stack, drawn_Z: np.ndarray, mean_Z: np.ndarray, std_Z: np.ndarray, number: int) -> None:
        """Gives back what `_draw` has taken."""
        for d, shift in reversed(list(enumerate(_shifts(number, len(mean_Z))))):
            stack.push("posterior", drawn_Z[d : d + 1], self._by_posterior, mean_Z[d : d + 1], std_Z[d : d + 1])
            bits = int(stack.pop("posterior", self._evenly)[0])
            stack.push("posterior", [(bits - shift) % _SHIFT], self._evenly)

    def _condition(self, window: Window) -> tuple[Gaussian, Tensor]:
        """p(z | c) and c, computed without the target: the receiver does not have it yet."""
        batch = collate([window._replace(target=_NO_IDS)], self.model.config.context_turns)
        prior, context_1C = self.model.condition(batch)
        return _gaussian("prior", prior), context_1C

    def _posterior(self, window: Window, prior: Gaussian) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """q(z | x, c) in steps of the grid, [Z] each: a place next to its mean, the mean as seen from there, the deviation."""
        posterior = self.model.infer(collate([window], self.model.config.context_turns)).posterior
        mean_Z, std_Z = (value_1Z[0].numpy() / self.step for value_1Z in _in_prior_units(posterior, prior))
        spread, room = self.grid.spread, self.grid.reach - self.grid.spread
        origin_Z = mean_Z.round().clip(-room, room)
        return origin_Z.astype(np.int64), (mean_Z - origin_Z).clip(-spread, spread), std_Z

    def _z(self, places_Z: np.ndarray, prior: Gaussian) -> Tensor:
        """[1, Z]."""
        return prior.sample(torch.from_numpy(places_Z * self.step).to(prior.mean_BZ)[None])


def fit_grid(model: VRAE, windows: list[Window]) -> Grid:
    """The grid for the posteriors of these windows: its step is at most 1/8 of the smallest standard deviation.

    So rounding z adds less than 1/700 to a variance. Where a mean is so far out that such a grid has more than MAX_REACH
    places, it is coarser: coding then takes more bits, and no other harm is done.

    Raises:
        ModelError: the posterior or the prior is not a diagonal Gaussian.
    """
    narrowest, widest, farthest = 1.0, 0.0, 1.0
    for start in range(0, len(windows), _ROWS):
        posterior, prior, _ = model.infer(collate(windows[start : start + _ROWS], model.config.context_turns))
        mean_BZ, std_BZ = _in_prior_units(posterior, _gaussian("prior", prior))
        if model.config.latent_size:
            narrowest, widest = min(narrowest, float(std_BZ.min())), max(widest, float(std_BZ.max()))
            farthest = max(farthest, float((mean_BZ.abs() + _DEVIATIONS * std_BZ).max()))
    fineness = min(math.ceil(math.log2(8 / narrowest)), math.floor(math.log2(MAX_REACH / farthest)))
    reach, spread = (max(math.ceil(size * 2.0**fineness), 1) for size in (farthest, _DEVIATIONS * widest))
    return Grid(fineness, reach, spread)


def entropy_coders() -> Any:
    """constriction's stream coders, and the distributions that they code by. Raises UserError where it is not installed."""
    try:
        import constriction
    except ImportError:
        raise UserError("bits-back coding needs constriction: pip install 'vrae[compress]'") from None
    return constriction.stream


def _in_prior_units(posterior: Density, prior: Gaussian) -> tuple[Tensor, Tensor]:
    """(posterior mean - prior mean) / prior standard deviation, and the ratio of the two deviations; [B, Z], double."""
    q, p = (Gaussian(*(value_BZ.double() for value_BZ in density)) for density in (_gaussian("posterior", posterior), prior))
    return (q.mean_BZ - p.mean_BZ) * (-0.5 * p.log_var_BZ).exp(), (0.5 * (q.log_var_BZ - p.log_var_BZ)).exp()


def _gaussian(role: str, density: Density) -> Gaussian:
    if not isinstance(density, Gaussian):
        raise ModelError(
            f"the {role} of this model is of type {type(density).__name__}, and bits-back coding needs a diagonal Gaussian: "
            "use a model with model.flow_steps 0 and no mixture prior"
        )
    return density


def _shifts(number: int, count: int) -> list[int]:
    """Pseudo-random numbers for turn `number`, the same everywhere."""
    digest = hashlib.shake_256(b"%d" % number).digest(4 * count)
    return [int(value) % _SHIFT for value in np.frombuffer(digest, "<u4")]


def _probabilities(logits_1V: Tensor) -> np.ndarray:
    probabilities_1V: np.ndarray = logits_1V.double().softmax(-1).numpy()
    return probabilities_1V
