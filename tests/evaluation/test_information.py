"""What the latent carries: variances over any split of the turns, offsets by hand, and the verdict in words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from vrae.evaluation.information import ACTIVE_VARIANCE, ActiveUnits, mutual_information, offsets, verdict
from vrae.model.gaussian import Gaussian


class TestOffsets:
    def test_are_in_standard_deviations_of_the_prior(self) -> None:
        # means 3 and 1, prior variance 4: (3 - 1) / 2; means 0 and 2, prior variance 1/4: (0 - 2) / 0.5
        variance = torch.tensor([[4.0, 0.25]], dtype=torch.float64)
        posterior = Gaussian(torch.tensor([[3.0, 0.0]], dtype=torch.float64), torch.tensor([[9.0, 9.0]]).double())
        prior = Gaussian(torch.tensor([[1.0, 2.0]], dtype=torch.float64), variance.log())
        assert offsets(posterior, prior)[0].tolist() == pytest.approx([1.0, -4.0], abs=1e-12)

    def test_under_the_standard_prior_are_the_posterior_means(self) -> None:
        mean_NZ, zeros_NZ = torch.randn(5, 3), torch.zeros(5, 3)
        assert torch.equal(offsets(Gaussian(mean_NZ, mean_NZ), Gaussian(zeros_NZ, zeros_NZ)), mean_NZ)


class TestActiveUnits:
    @pytest.mark.parametrize("sizes", [(100,), (1,) * 100, (1, 99), (99, 1), (30, 30, 40), (2, 3, 5, 7, 83)], ids=str)
    def test_variance_is_that_of_all_turns_however_they_come(self, sizes: tuple[int, ...]) -> None:
        values_NZ = torch.randn(100, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        values_NZ = values_NZ * torch.tensor([0.01, 0.09, 0.1, 0.11, 1, 50]) + torch.tensor([1e4, 0, -7, 1, 0, 3])
        active = ActiveUnits(6)
        for part in values_NZ.split(sizes):
            active.add(part)
        expected = torch.var(values_NZ, 0, unbiased=True)
        assert active.variance_Z.tolist() == pytest.approx(expected.tolist(), rel=1e-9)
        assert active.count == int((expected >= ACTIVE_VARIANCE).sum())

    def test_counts_a_variance_of_a_hundredth_and_no_less(self) -> None:
        # Two turns at -x and x have variance 2 x^2 with n - 1 below.
        active = ActiveUnits(3)
        active.add(torch.tensor([[-1, -0.0708, -0.0707]], dtype=torch.float64))
        active.add(torch.tensor([[1, 0.0708, 0.0707]], dtype=torch.float64))
        assert active.variance_Z.tolist() == pytest.approx([2, 0.01002528, 0.00999698])
        assert active.count == 2

    def test_keeps_precision_of_single_precision_values_far_from_zero(self) -> None:
        values_NZ = 1000 + 0.25 * torch.randn(4096, 1, generator=torch.Generator().manual_seed(0))
        active = ActiveUnits(1)
        for part in values_NZ.split(64):
            active.add(part)
        assert active.variance_Z.tolist() == pytest.approx(torch.var(values_NZ.double(), 0).tolist(), rel=1e-9)

    def test_is_zero_without_turns_with_one_turn_and_without_latent(self) -> None:
        none, one, flat = ActiveUnits(2), ActiveUnits(2), ActiveUnits(0)
        one.add(torch.tensor([[5.0, -3.0]]))
        flat.add(torch.zeros(4, 0))
        assert (none.count, one.count, flat.count) == (0, 0, 0)

    def test_holds_no_graph(self) -> None:
        active = ActiveUnits(1)
        active.add(torch.ones(2, 1, requires_grad=True))
        assert not active.variance_Z.requires_grad


def normal_noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class TestMutualInformation:
    @pytest.mark.parametrize("latent_size", [1, 3])
    @pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
    def test_is_the_entropy_of_the_mixture_less_the_mean_entropy_of_its_parts(self, spread: float, latent_size: int) -> None:
        # Four posteriors, each of 2000 turns; only the first dimension tells them apart, so one integral does.
        mean_X = spread * torch.tensor([-2.0, -0.5, 0.0, 3.0], dtype=torch.float64)
        std_X = torch.tensor([1.0, 0.3, 2.0, 0.7], dtype=torch.float64)
        z_G = torch.linspace(-40, 40, 40_001, dtype=torch.float64)
        mixture_G = Normal(mean_X[:, None], std_X[:, None]).log_prob(z_G).exp().mean(0)
        entropy = -torch.trapezoid(torch.special.xlogy(mixture_G, mixture_G), z_G)
        expected = float(entropy - Normal(mean_X, std_X).entropy().mean())

        mean_NZ, log_var_NZ = torch.full((2, 8000, latent_size), 0.4, dtype=torch.float64)
        mean_NZ[:, 0], log_var_NZ[:, 0] = mean_X.repeat(2000), 2 * std_X.log().repeat(2000)
        found = mutual_information(Gaussian(mean_NZ, log_var_NZ), normal_noise(8000, latent_size), most=8000)
        assert found == pytest.approx(expected, abs=5 * (latent_size / 2 / 8000) ** 0.5)
        assert 0 < expected < math.log(4)

    def test_is_log_n_where_every_turn_has_a_place_of_its_own(self) -> None:
        noise_NZ = normal_noise(700, 2)
        mean_NZ = 10 * torch.arange(700.0).double()[:, None].expand(-1, 2)
        found = mutual_information(Gaussian(mean_NZ, torch.full_like(mean_NZ, -2.0)), noise_NZ)
        assert found == pytest.approx(math.log(700), abs=1e-6)

    def test_is_nothing_where_all_turns_share_one(self) -> None:
        zeros_NZ, noise_NZ = torch.zeros(600, 3, dtype=torch.float64), normal_noise(600, 3)
        found = mutual_information(Gaussian(zeros_NZ + 5, zeros_NZ + 1), noise_NZ)
        assert found == pytest.approx(0, abs=1e-6)

    def test_without_latent_is_zero(self) -> None:
        assert mutual_information(Gaussian(torch.zeros(9, 0), torch.zeros(9, 0)), torch.zeros(9, 0)) == 0

    def test_of_many_turns_is_that_of_an_even_sample(self) -> None:
        mean_NZ, log_var_NZ, noise_NZ = normal_noise(3, 901, 2) * torch.tensor([2, 0.5, 1]).double()[:, None, None]
        every_ninth = Gaussian(mean_NZ[::9], log_var_NZ[::9])
        found = mutual_information(Gaussian(mean_NZ, log_var_NZ), noise_NZ, most=101)
        assert found == pytest.approx(mutual_information(every_ninth, noise_NZ[::9]), abs=1e-12)


class TestVerdict:
    @pytest.mark.parametrize(
        ("rate", "active", "state", "words"),
        [
            ([], 0, "no latent", "deterministic baseline"),
            ([0.02, 0.03], 2, "collapsed", "the rate is 0.05 nats per turn, 2 of 2 units"),
            ([4.0, 5.0], 0, "collapsed", "the rate is 9.00 nats per turn, 0 of 2 units"),
            ([0.0, 0.0, 0.0], 0, "collapsed", "the posterior has collapsed onto the prior"),
            ([4.0, 0.0, 0.5], 2, "partially collapsed", "1 of 3 latent dimensions carry nothing"),
            ([0.05, 0.05], 2, "healthy", "all 2 latent dimensions are in use, at 0.1 nats per turn"),
            ([4.0, 3.0], 2, "healthy", "at 7.0 nats per turn"),
        ],
    )
    def test_states_what_is_so(self, rate: list[float], active: int, state: str, words: str) -> None:
        found = verdict(torch.tensor(rate, dtype=torch.float64), active)
        assert found.state == state
        assert words in found.words

    @pytest.mark.parametrize(("rate", "active"), [([0.0, 0.0], 0), ([4.0, 0.0], 1)])
    def test_names_the_settings_that_mend_it(self, rate: list[float], active: int) -> None:
        words = verdict(torch.tensor(rate), active).words
        for setting in ("objective.free_bits", "objective.target_rate", "batches.word_dropout"):
            assert setting in words
