"""The coder of one turn against densities computed apart from it: what it draws, what it spends, what it gives back."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_windows, tiny_model
from torch.distributions import Normal, kl_divergence

from vrae.corpus.batches import Window, collate
from vrae.errors import ModelError, UserError
from vrae.evaluation import bits_back
from vrae.evaluation.bits_back import MAX_REACH, Grid, Stack, StackError, TurnCoder, entropy_coders, fit_grid
from vrae.model.gaussian import Gaussian
from vrae.model.vrae import VRAE

DRAWS = 160

every_model = pytest.mark.parametrize(
    ("context_turns", "latent_size", "dtype"),
    [(0, 0, torch.float64), (0, 4, torch.float32), (0, 4, torch.float64), (2, 0, torch.float32), (2, 4, torch.float32)],
)


@pytest.fixture(autouse=True)
def _without_gradients() -> object:
    with torch.no_grad():
        yield


def words(count: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 2**32, count, np.uint32)


def fitted(model: VRAE, windows: list[Window]) -> TurnCoder:
    return TurnCoder(model, fit_grid(model, windows))


def moments(model: VRAE, window: Window) -> tuple[Normal, Normal]:
    """q(z | x, c) and p(z | c), [Z]."""
    posterior, prior, _ = model.infer(collate([window], model.config.context_turns))
    q, p = (Normal(g.mean_BZ[0], (g.log_var_BZ[0] / 2).exp()) for g in (posterior, prior))
    return q, p


def calm(model: VRAE) -> VRAE:
    """The model with posteriors narrower than the prior and not far from it, as training makes them."""
    posterior: Any = model.posterior
    posterior.out.weight *= 0.3
    posterior.out.bias[4:] = -2
    if model.config.context_turns:
        prior: Any = model.prior
        prior.out.weight *= 0.3
        prior.out.bias[4:] = 0.5
    return model


class Spy:
    """Remembers each z that the decoder of a model starts from."""

    def __init__(self, model: VRAE, monkeypatch: pytest.MonkeyPatch) -> None:
        self.zs: list[torch.Tensor] = []
        start = model.decoder.start

        def remember(z_BZ: torch.Tensor, context_BC: torch.Tensor) -> object:
            self.zs.append(z_BZ)
            return start(z_BZ, context_BC)

        monkeypatch.setattr(model.decoder, "start", remember)


class TestStack:
    def test_a_symbol_takes_minus_log2_of_its_probability(self) -> None:
        stack, family = Stack(words()), entropy_coders().model
        before = stack.bits
        stack.push("bytes", [10, 0, 255], family.Uniform(256))
        assert stack.growth["bytes"] == pytest.approx(24, abs=1e-3)
        stack.push("pieces", [2], family.Categorical(perfect=False), np.array([[0.5, 0.25, 0.125, 0.125]]))
        assert stack.growth["pieces"] == pytest.approx(3, abs=1e-3)
        assert stack.bits - before == pytest.approx(27, abs=1e-3)
        assert stack.pop("pieces", family.Categorical(perfect=False), np.array([[0.5, 0.25, 0.125, 0.125]])).tolist() == [2]
        assert [stack.pop("bytes", family.Uniform(256)).tolist() for _ in range(3)] == [[10], [0], [255]]
        assert stack.growth == pytest.approx({"bytes": 0, "pieces": 0}, abs=1e-6)
        assert stack.words.tolist() == words().tolist()

    def test_bits_are_those_of_the_words(self) -> None:
        assert Stack(np.array([7, 1 << 31], np.uint32)).bits == pytest.approx(63)
        assert Stack(np.array([7, 9, 1], np.uint32)).bits == pytest.approx(64)
        assert Stack(np.array([7, 9], np.uint32), seal=True).bits == pytest.approx(64)
        assert Stack(np.array([7, 0], np.uint32), seal=True).words.tolist() == [7, 0, 1]

    def test_taking_off_more_than_there_is_fails(self) -> None:
        byte = entropy_coders().model.Uniform(256)
        stack = Stack(words(2), seal=True)
        for _ in range(5):  # 24 of the 64 bits stay, for the sixth to be read off
            stack.pop("bytes", byte)
        with pytest.raises(StackError):
            stack.pop("bytes", byte)

    def test_without_constriction_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "constriction", None)
        with pytest.raises(UserError, match=r"pip install 'vrae\[compress\]'"):
            Stack(words())


class TestTurnCoder:
    @every_model
    def test_gives_the_turns_and_every_bit_back(self, context_turns: int, latent_size: int, dtype: torch.dtype) -> None:
        model = tiny_model(context_turns=context_turns, latent_size=latent_size).to(dtype)
        windows = random_windows(20, context_turns)
        coder, stack = fitted(model, windows), Stack(words())
        for number, window in enumerate(windows):
            coder.push(stack, window, number)
        assert stack.bits > 32 * 64
        for number, window in reversed(list(enumerate(windows))):
            unknown = window._replace(target=np.array([5, 6, 7]))  # the receiver's window may say anything here
            assert coder.pop(stack, unknown, number).tolist() == window.target.tolist()
        assert stack.words.tolist() == words().tolist()

    @pytest.mark.parametrize("context_turns", [0, 2])
    def test_spends_what_the_densities_say(self, context_turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
        model = calm(tiny_model(context_turns=context_turns))
        windows = random_windows(40, context_turns)
        coder, spy = fitted(model, windows), Spy(model, monkeypatch)
        for number, window in enumerate(windows):
            stack = Stack(words(seed=number))
            coder.push(stack, window, number)
            z_1Z = spy.zs[-1]
            q, p = moments(model, window)
            batch = collate([window], context_turns)
            context_1C = model.infer(batch).context_BC
            cell = coder.step * p.scale.log().exp()  # width of a place of the grid
            # a cell's probability is the density at its middle times its width, but for the curvature within the cell
            assert stack.growth["tokens"] == pytest.approx(
                -float(model.log_prob(batch, z_1Z, context_1C)) / math.log(2), rel=1e-3
            )
            assert stack.growth["prior"] == pytest.approx(
                -float((p.log_prob(z_1Z[0]) + cell.log()).sum()) / math.log(2), rel=0.01
            )
            assert -stack.growth["posterior"] == pytest.approx(
                -float((q.log_prob(z_1Z[0]) + cell.log()).sum()) / math.log(2), rel=0.03
            )

    @pytest.mark.parametrize("context_turns", [0, 2])
    def test_spends_the_divergence_on_z_in_the_mean(self, context_turns: int) -> None:
        model = tiny_model(context_turns=context_turns)
        window = random_windows(9, context_turns)[-1]
        coder = fitted(model, [window])
        spent = []
        for number in range(DRAWS):
            stack = Stack(words(16, seed=number))
            coder.push(stack, window, number)
            spent.append(stack.growth["prior"] + stack.growth["posterior"])
        rate = float(kl_divergence(*moments(model, window)).sum()) / math.log(2)
        assert abs(np.mean(spent) - rate) < 4 * np.std(spent) / math.sqrt(DRAWS)
        assert np.std(spent) / math.sqrt(DRAWS) < 0.2 * rate

    @pytest.mark.parametrize("filling", [1, 0x01010101, 0xFFFFFFFF])
    def test_draws_from_the_posterior_whatever_lies_on_the_stack(self, filling: int, monkeypatch: pytest.MonkeyPatch) -> None:
        model, window = tiny_model(), random_windows(9, 0)[-1]
        coder, spy = fitted(model, [window]), Spy(model, monkeypatch)
        for number in range(DRAWS):
            coder.push(Stack(np.full(16, filling, np.uint32)), window, number)
        q, _ = moments(model, window)
        uniform_NZ = q.cdf(torch.cat(spy.zs)).sort(0).values
        even_N = (torch.arange(DRAWS) + 0.5) / DRAWS
        # Kolmogorov-Smirnov: 1.95 / sqrt(DRAWS) is exceeded once in a thousand times
        assert float((uniform_NZ - even_N[:, None]).abs().max()) < 1.95 / math.sqrt(DRAWS)
        assert float(torch.corrcoef(torch.cat(spy.zs).T).fill_diagonal_(0).abs().max()) < 0.3

    def test_gives_up_on_a_turn_that_does_not_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny_model()
        model.decoder.out.bias[3] = -1e9  # the end mark
        monkeypatch.setattr(bits_back, "MAX_TOKENS", 10)
        stack = Stack(words(1000))
        with pytest.raises(StackError):
            TurnCoder(model, Grid(3, 8, 8)).pop(stack, Window([], np.zeros(0, np.int64), []), 0)
        assert stack.bits > 32 * 900

    def test_refuses_a_latent_that_no_posterior_draws(self) -> None:
        model = tiny_model()
        model.posterior.out.weight.zero_()  # type: ignore[union-attr, operator]
        model.posterior.out.bias.copy_(torch.tensor([50.0] * 4 + [0.0] * 4))  # type: ignore[union-attr, operator]
        with pytest.raises(StackError):
            TurnCoder(model, Grid(3, 512, 8)).pop(Stack(words(1000)), Window([], np.zeros(0, np.int64), []), 0)

    @pytest.mark.parametrize(
        ("role", "settings"),
        [("posterior", dict(flow_steps=2)), ("prior", dict(context_turns=2, prior="mixture", prior_components=3))],
    )
    def test_refuses_densities_that_are_not_gaussian(self, role: str, settings: dict[str, object]) -> None:
        model = tiny_model(**settings)
        with pytest.raises(ModelError, match=f"^the {role} of this model is of type .* needs a diagonal Gaussian"):
            fit_grid(model, random_windows(3, 0))
        with pytest.raises(ModelError, match=f"^the {role}"):
            TurnCoder(model, Grid(5, 512, 256)).push(Stack(words()), random_windows(1, 0)[0], 0)


class TestGrid:
    @pytest.mark.parametrize("context_turns", [0, 2])
    def test_suits_all_posteriors(self, context_turns: int) -> None:
        model, windows = tiny_model(context_turns=context_turns), random_windows(150, context_turns)
        grid = fit_grid(model, windows)
        pairs = [moments(model, window) for window in windows]
        ratios = torch.stack([q.scale / p.scale for q, p in pairs]) * 2.0**grid.fineness
        means = torch.stack([(q.mean - p.mean) / p.scale for q, p in pairs]) * 2.0**grid.fineness
        assert 8 <= float(ratios.min()) < 16
        assert grid.spread == math.ceil(6 * float(ratios.max()))
        assert grid.reach == math.ceil(float((means.abs() + 6 * ratios).max()))

    def test_is_coarse_rather_than_large(self) -> None:
        model, windows = tiny_model(), random_windows(12, 0)
        model.posterior.out.bias[0] += 1000  # type: ignore[union-attr, operator]
        model.posterior.out.bias[4:] -= 9  # type: ignore[union-attr, operator]
        grid = fit_grid(model, windows)
        assert MAX_REACH / 2 < grid.reach <= MAX_REACH
        coder, stack = TurnCoder(model, grid), Stack(words())
        for window in windows:
            coder.push(stack, window, 0)
        assert [coder.pop(stack, window, 0).tolist() for window in reversed(windows)] == [
            window.target.tolist() for window in reversed(windows)
        ]

    def test_of_no_turn_is_a_grid(self) -> None:
        assert fit_grid(tiny_model(), []) == fit_grid(tiny_model(latent_size=0), random_windows(3, 0)) == Grid(3, 8, 1)


def test_the_posterior_may_stand_anywhere_on_the_grid() -> None:
    # Means outside of the reach are drawn at its edge, and the bits come back all the same.
    model, window = tiny_model(), random_windows(9, 0)[-1]
    for reach, spread in ((4, 4), (9, 2), (300, 1)):
        coder, stack = TurnCoder(model, Grid(6, reach, spread)), Stack(words())
        coder.push(stack, window, 3)
        assert coder.pop(stack, window, 3).tolist() == window.target.tolist()
        assert stack.words.tolist() == words().tolist()


def test_z_is_counted_from_the_prior_in_its_own_deviations() -> None:
    coder = TurnCoder(tiny_model(), Grid(2, 8, 8))
    prior = Gaussian(torch.tensor([[1.0, -1, 0, 0]]), torch.tensor([[0.0, 0, math.log(4), math.log(9)]]))
    assert coder._z(np.array([4, 4, -2, 0]), prior)[0].tolist() == pytest.approx([2, 0, -1, 0])
