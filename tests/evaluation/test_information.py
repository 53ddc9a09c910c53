"""What the latent carries: variances over any split of the turns, information by integrals, and the verdict in words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from vrae.evaluation import information as information_module
from vrae.evaluation.information import ACTIVE_VARIANCE, ActiveUnits, Information, information, offsets, verdict
from vrae.model.flow import Coupling, Flow
from vrae.model.gaussian import Density, Gaussian, select
from vrae.model.mixture import GaussianMixture


class TestOffsets:
    def test_are_in_standard_deviations_of_the_prior(self) -> None:
        # means 3 and 1, prior variance 4: (3 - 1) / 2; means 0 and 2, prior variance 1/4: (0 - 2) / 0.5
        variance = torch.tensor([[4.0, 0.25]], dtype=torch.float64)
        posterior = Gaussian(torch.tensor([[3.0, 0.0]], dtype=torch.float64), torch.tensor([[9.0, 9.0]]).double())
        prior = Gaussian(torch.tensor([[1.0, 2.0]], dtype=torch.float64), variance.log())
        assert offsets(posterior, prior)[0].tolist() == pytest.approx([1.0, -4.0], abs=1e-12)

    def test_under_a_mixture_are_taken_by_its_moments(self) -> None:
        # a mixture of N(-1, 1) and N(3, 1), one to three: mean 2, variance 1 + 3 = 4
        prior = GaussianMixture(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[[-1.0], [3.0]]]), torch.zeros(1, 2, 1))
        assert offsets(Gaussian(torch.tensor([[5.0]]), torch.zeros(1, 1)), prior).tolist() == [[pytest.approx(1.5)]]

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
        assert active.active_Z.tolist() == (expected >= ACTIVE_VARIANCE).tolist()
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


def standard(N: int, Z: int) -> Gaussian:
    zeros_NZ = torch.zeros(N, Z, dtype=torch.float64)
    return Gaussian(zeros_NZ, zeros_NZ)


def four_kinds(spread: float, N: int, Z: int) -> tuple[Normal, Gaussian]:
    """Four posteriors, each of a quarter of the turns; only the first dimension tells them apart, so one integral does."""
    mean_X = spread * torch.tensor([-2.0, -0.5, 0.0, 3.0], dtype=torch.float64)
    std_X = torch.tensor([1.0, 0.3, 2.0, 0.7], dtype=torch.float64)
    mean_NZ, log_var_NZ = torch.full((2, N, Z), 0.4, dtype=torch.float64)
    mean_NZ[:, 0], log_var_NZ[:, 0] = mean_X.repeat(N // 4), 2 * std_X.log().repeat(N // 4)
    return Normal(mean_X[:, None], std_X[:, None]), Gaussian(mean_NZ, log_var_NZ)


GRID = torch.linspace(-40, 40, 40_001, dtype=torch.float64)


def integral(values_G: Tensor) -> float:
    return float(torch.trapezoid(values_G, GRID))


class TestMutualInformation:
    @pytest.mark.parametrize("latent_size", [1, 3])
    @pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
    def test_is_the_entropy_of_the_mixture_less_the_mean_entropy_of_its_parts(self, spread: float, latent_size: int) -> None:
        kinds, posterior = four_kinds(spread, 4000, latent_size)
        mixture_G = kinds.log_prob(GRID).exp().mean(0)
        expected = -integral(torch.special.xlogy(mixture_G, mixture_G)) - float(kinds.entropy().mean())
        found = information(posterior, standard(4000, latent_size), normal_noise(4000, latent_size))
        assert found.mutual_information_error is not None
        assert 0 < found.mutual_information_error < 2 / 4000**0.5
        assert found.mutual_information == pytest.approx(expected, abs=4 * found.mutual_information_error)
        assert 0 < expected < math.log(4)

    def test_is_log_n_where_every_turn_has_a_place_of_its_own(self) -> None:
        mean_NZ = 10 * torch.arange(700.0).double()[:, None].expand(-1, 2)
        found = information(Gaussian(mean_NZ, torch.full_like(mean_NZ, -2.0)), standard(700, 2), normal_noise(700, 2))
        assert found.mutual_information == pytest.approx(math.log(700), abs=1e-6)
        assert found.mutual_information_error == pytest.approx(0, abs=1e-6)
        assert found.most == math.log(700)
        assert found.saturated

    def test_is_nothing_where_all_turns_share_one(self) -> None:
        zeros_NZ = torch.zeros(600, 3, dtype=torch.float64)
        found = information(Gaussian(zeros_NZ + 5, zeros_NZ + 1), standard(600, 3), normal_noise(600, 3))
        assert found.mutual_information == pytest.approx(0, abs=1e-6)
        assert not found.saturated

    def test_without_latent_is_zero(self) -> None:
        found = information(standard(9, 0), standard(9, 0), torch.zeros(9, 0))
        assert (found.mutual_information, found.aggregated_kl) == pytest.approx((0, 0), abs=1e-12)

    def test_of_one_turn_is_nothing_and_has_no_error(self) -> None:
        found = information(Gaussian(torch.ones(1, 2), torch.zeros(1, 2)), standard(1, 2), normal_noise(1, 2))
        assert found.mutual_information == pytest.approx(0, abs=1e-12)
        assert (found.mutual_information_error, found.aggregated_kl_error) == (None, None)

    @pytest.mark.parametrize(("nats", "saturated"), [(math.log(50) - 1.01, False), (math.log(50) - 0.99, True)])
    def test_is_saturated_within_one_nat_of_log_n(self, nats: float, saturated: bool) -> None:
        assert Information(50, nats, None, 0.0, None).saturated is saturated


class TestAggregatedPosterior:
    @pytest.mark.parametrize("spread", [0.3, 1.0])
    def test_diverges_from_the_standard_prior_by_the_integral(self, spread: float) -> None:
        kinds, posterior = four_kinds(spread, 4000, 1)
        mixture_G = kinds.log_prob(GRID).exp().mean(0)
        prior_G = Normal(0.0, 1.0).log_prob(GRID)
        expected = integral(torch.special.xlogy(mixture_G, mixture_G) - mixture_G * prior_G)
        found = information(posterior, standard(4000, 1), normal_noise(4000, 1))
        assert found.aggregated_kl_error is not None
        assert 0 < found.aggregated_kl_error < 0.1
        assert found.aggregated_kl == pytest.approx(expected, abs=4 * found.aggregated_kl_error)

    @pytest.mark.parametrize("mixture", [False, True])
    def test_diverges_from_the_mean_prior_of_the_contexts(self, mixture: bool) -> None:
        # Every other turn has the one context and the rest the other: p(z) is the mean of N(0, 1) and N(2, 4).
        kinds, posterior = four_kinds(1.0, 4000, 1)
        means_2, stds_2 = torch.tensor([0.0, 2.0]).double(), torch.tensor([1.0, 2.0]).double()
        mean_N1, log_var_N1 = means_2.repeat(2000)[:, None], 2 * stds_2.log().repeat(2000)[:, None]
        prior: Density = Gaussian(mean_N1, log_var_N1)
        N = 4000
        if mixture:  # the same as a mixture prior of two components for all, which is the path for what is not Gaussian
            N = 800
            posterior = select(posterior, torch.arange(N))
            parts = (means_2.expand(N, -1)[:, :, None], 2 * stds_2.log().expand(N, -1)[:, :, None])
            prior = GaussianMixture(torch.full((N, 2), -math.log(2)).double(), *parts)
        mixture_G = kinds.log_prob(GRID).exp().mean(0)
        prior_G = Normal(means_2[:, None], stds_2[:, None]).log_prob(GRID).exp().mean(0)
        expected = integral(torch.special.xlogy(mixture_G, mixture_G) - mixture_G * prior_G.log())
        found = information(posterior, prior, normal_noise(N, 1))
        assert found.aggregated_kl_error is not None
        assert found.aggregated_kl == pytest.approx(expected, abs=4 * found.aggregated_kl_error)

    def test_and_mutual_information_add_up_to_the_rate_at_the_same_latents(self) -> None:
        posterior, noise_NX = four_kinds(1.0, 400, 3)[1], normal_noise(400, 3)
        z_NZ = posterior.sample(noise_NX)
        rate = (posterior.log_prob(z_NZ) - standard(400, 3).log_prob(z_NZ)).sum(-1).mean()
        found = information(posterior, standard(400, 3), noise_NX)
        assert found.mutual_information + found.aggregated_kl == pytest.approx(float(rate), abs=1e-10)
        exact = float(posterior.kl(standard(400, 3)).sum(-1).mean())
        assert found.mutual_information + found.aggregated_kl == pytest.approx(exact, abs=0.3)


def bent(N: int, steps: int) -> Flow:
    """A flow posterior of N turns in two dimensions."""
    draw = torch.Generator().manual_seed(3)
    couplings = torch.nn.ModuleList(Coupling(slice(i % 2, None, 2), 4, 5, 2).double() for i in range(steps))
    with torch.no_grad():
        for parameter in couplings.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=draw))
    mean_NZ, log_var_NZ, features_N4 = (torch.randn(N, width, generator=draw).double() for width in (2, 2, 4))
    return Flow(mean_NZ, log_var_NZ, features_N4, couplings)


class TestOfOtherDensities:
    @torch.no_grad()
    def test_takes_every_density_at_every_latent(self) -> None:
        posterior, noise_NX, N = bent(30, 3), normal_noise(30, 2), 30
        prior = GaussianMixture(
            normal_noise(N, 3).log_softmax(-1), normal_noise(N, 3, 2).roll(1, 0), normal_noise(N, 3, 2).flip(0)
        )
        z_NZ = posterior.sample(noise_NX)
        own, aggregated, mean_prior = [], [], []
        for n in range(N):  # one at a time, each in its own batch of one
            each = [(select(posterior, torch.tensor([m])), select(prior, torch.tensor([m]))) for m in range(N)]
            logs = torch.tensor([[float(d.log_prob(z_NZ[n : n + 1]).sum()) for d in pair] for pair in each]).double()
            own.append(float(logs[n, 0]))
            aggregated.append(math.log(sum(math.exp(value) for value in logs[:, 0].tolist()) / N))
            mean_prior.append(math.log(sum(math.exp(value) for value in logs[:, 1].tolist()) / N))
        found = information(posterior, prior, noise_NX)
        assert found.mutual_information == pytest.approx((sum(own) - sum(aggregated)) / N, abs=1e-5)
        assert found.aggregated_kl == pytest.approx((sum(aggregated) - sum(mean_prior)) / N, abs=1e-5)

    @torch.no_grad()
    @pytest.mark.parametrize("single", [False, True])
    def test_of_a_flow_without_bends_is_that_of_the_gaussian(self, single: bool) -> None:
        flow = bent(40, 0)
        if single:
            flow = Flow(flow.base_mean_BZ.float(), flow.base_log_var_BZ.float(), flow.features_BX.float(), flow.couplings)
        gaussian = Gaussian(flow.base_mean_BZ, flow.base_log_var_BZ)
        noise_NX = normal_noise(40, 2).to(flow.base_mean_BZ.dtype)
        found, expected = (information(density, standard(40, 2), noise_NX) for density in (flow, gaussian))
        assert found == pytest.approx(expected, abs=1e-5 if single else 1e-10)

    @torch.no_grad()
    def test_uses_an_even_sample_of_the_latents_where_there_are_many_pairs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        posterior, prior, noise_NX = bent(901, 2), standard(901, 2), normal_noise(901, 2)
        z_NZ = posterior.sample(noise_NX)
        log_own_N = posterior.log_prob(z_NZ).sum(-1)
        logs_RN = torch.stack([posterior.log_prob(z_NZ[r].expand(901, -1)).sum(-1) for r in range(0, 901, 9)])
        gain_R = log_own_N[::9] - (logs_RN.logsumexp(1) - math.log(901))
        monkeypatch.setattr(information_module, "_PAIRS", 101 * 901)
        found = information(posterior, prior, noise_NX)
        assert found.turns == 901
        assert found.mutual_information == pytest.approx(float(gain_R.mean()), abs=1e-10)
        assert found.mutual_information_error == pytest.approx(float(gain_R.std()) / 101**0.5, abs=1e-10)


class TestVerdict:
    @pytest.mark.parametrize(
        ("rate", "active", "state", "words"),
        [
            ([], "", "no latent", "deterministic baseline"),
            ([0.02, 0.03], "11", "collapsed", "the rate is 0.05 nats per turn, 2 of 2 units"),
            ([4.0, 5.0], "00", "collapsed", "the rate is 9.00 nats per turn, 0 of 2 units"),
            ([0.0, 0.0, 0.0], "000", "collapsed", "the posterior has collapsed onto the prior"),
            ([4.0, 0.0, 0.5], "101", "partially collapsed", "1 of 3 latent dimensions carry nothing (1, counted from 0)"),
            ([1.0] * 9, "001001011", "partially collapsed", "5 of 9 latent dimensions carry nothing (0-1, 3-4, 6, counted"),
            ([1.0] * 4, "1000", "partially collapsed", "(1-3, counted from 0). Lower model.latent_size to 1,"),
            ([0.05, 0.05], "11", "healthy", "all 2 latent dimensions are in use, at 0.1 nats per turn"),
            ([4.0, 3.0], "11", "healthy", "at 7.0 nats per turn"),
        ],
    )
    def test_states_what_is_so(self, rate: list[float], active: str, state: str, words: str) -> None:
        found = verdict(torch.tensor(rate, dtype=torch.float64), torch.tensor([bit == "1" for bit in active], dtype=torch.bool))
        assert found.state == state
        assert words in found.words

    @pytest.mark.parametrize(
        ("gain", "state"), [(0.09, "collapsed"), (-2.0, "collapsed"), (0.11, "healthy"), (None, "healthy")]
    )
    def test_tells_a_latent_that_the_decoder_does_not_use(self, gain: float | None, state: str) -> None:
        found = verdict(torch.tensor([4.0, 3.0]), torch.tensor([True, True]), gain)
        assert found.state == state
        assert ("the decoder makes nothing of them" in found.words) == (state == "collapsed")

    @pytest.mark.parametrize(("rate", "active"), [([0.0, 0.0], [False, False]), ([4.0, 0.0], [True, False])])
    def test_names_the_settings_that_mend_it(self, rate: list[float], active: list[bool]) -> None:
        words = verdict(torch.tensor(rate), torch.tensor(active)).words
        for setting in ("objective.free_bits", "objective.target_rate", "batches.word_dropout", "objective.bag_of_words"):
            assert setting in words
