"""Every estimator where the truth is known.

A linear Gaussian model, whose evidence, posterior and information are matrix formulas; and GRU models of five pieces, whose
evidence is an integral over a latent of one or two dimensions and whose sentences can be counted out. Errors are four standard
errors of the estimate, in long lists five.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import tiny_model
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from vrae.corpus.batches import Window, collate
from vrae.corpus.tokenizer import BOS, EOS
from vrae.evaluation.likelihood import Bound, measure, measure_turns
from vrae.evaluation.turns import Turns
from vrae.model.bound import Noise, draw
from vrae.model.decoder import DecoderState
from vrae.model.gaussian import Gaussian
from vrae.model.mixture import GaussianMixture
from vrae.model.vrae import VRAE, Inferred

N = 2000


def standard_error(values_N: np.ndarray | Tensor) -> float:
    return float(values_N.std()) / len(values_N) ** 0.5


class Points(NamedTuple):
    """A batch of vectors, as far as the estimators read one."""

    points_NX: Tensor
    target_B: Tensor
    inputs_BT: Tensor
    target_lengths_B: Tensor

    def to(self, device: torch.device) -> Points:
        return self

    @property
    def tokens(self) -> int:
        return len(self.target_B)


class Linear:
    """z ~ N(0, I), x = W z + b + sigma * noise; q(z | x) = N(A (x - b), diag(v)), as a model and as its own windows.

    A is that of the true posterior, times `slope`, and v twice its variance. With `orthogonal` the columns of W are,
    so that the true posterior is diagonal, and q is just it.
    """

    training = False
    device = torch.device("cpu")

    def __init__(self, orthogonal: bool = False, slope: float = 1.0) -> None:
        self.config = SimpleNamespace(latent_size=2)
        generator = torch.Generator().manual_seed(1)
        self.W_XZ = torch.randn(3, 2, generator=generator, dtype=torch.float64)
        self.b_X, self.sigma = torch.tensor([1.0, -2.0, 0.5]).double(), 0.3
        if orthogonal:
            self.W_XZ = torch.linalg.qr(self.W_XZ).Q * torch.tensor([1.5, 0.7]).double()
        precision_ZZ = torch.eye(2).double() + self.W_XZ.T @ self.W_XZ / self.sigma**2
        self.posterior_ZZ = torch.linalg.inv(precision_ZZ)  # covariance of p(z | x)
        self.A_ZX = slope * self.posterior_ZZ @ self.W_XZ.T / self.sigma**2
        self.variance_Z = self.posterior_ZZ.diagonal() * (1 if orthogonal else 2)
        self.evidence = MultivariateNormal(self.b_X, self.W_XZ @ self.W_XZ.T + self.sigma**2 * torch.eye(3).double())
        torch.manual_seed(0)
        self.x_NX = self.evidence.sample((N,))

    def eval(self) -> None: ...

    def train(self, training: bool) -> None: ...

    def infer(self, batch: Points) -> Inferred:
        mean_BZ = (batch.points_NX[batch.target_B] - self.b_X) @ self.A_ZX.T
        zeros_BZ = torch.zeros_like(mean_BZ)
        return Inferred(Gaussian(mean_BZ, self.variance_Z.log() + zeros_BZ), Gaussian(zeros_BZ, zeros_BZ), mean_BZ[:, :0])

    def log_prob(self, batch: Points, z_BZ: Tensor, context_BC: Tensor) -> Tensor:
        return Normal(z_BZ @ self.W_XZ.T + self.b_X, self.sigma).log_prob(batch.points_NX[batch.target_B]).sum(-1)

    def __len__(self) -> int:
        return N

    # as windows
    split = SimpleNamespace(dialogues=np.arange(0, N + 1, 4))
    target_N = np.arange(N)

    def in_order(self, limit: int = 0, part: int = 0, count: int = 1) -> Iterator[tuple[np.ndarray, Points]]:
        ones, all = torch.ones(500, dtype=torch.int64), min(limit or N, N)
        for rows in np.split(np.arange(all), range(500, all, 500))[part::count]:
            yield rows, Points(self.x_NX[rows], torch.arange(len(rows)), ones[: len(rows), None], ones[: len(rows)])

    def measured(self, k: int = 0) -> Bound:
        return measure(self, self, k=k, seed=5)  # type: ignore[arg-type]

    def turns(self, k: int, limit: int = 0) -> Turns:
        return measure_turns(self, self, k=k, seed=5, limit=limit)  # type: ignore[arg-type]

    @property
    def exact_distortion_N(self) -> np.ndarray:
        """-E_q log p(x | z): the square of a Gaussian is that of its mean and its variance."""
        residual_NX = (self.x_NX - self.b_X) @ (torch.eye(3).double() - self.W_XZ @ self.A_ZX).T
        spread = (self.W_XZ.square() @ self.variance_Z).sum()
        square_N = (residual_NX.square().sum(-1) + spread) / self.sigma**2
        return (0.5 * square_N + 1.5 * math.log(2 * math.pi * self.sigma**2)).numpy()


class TestLinearGaussian:
    def test_bound(self) -> None:
        model = Linear()
        bound, turns = model.measured(k=3), model.turns(3)
        q = Normal((model.x_NX - model.b_X) @ model.A_ZX.T, model.variance_Z.sqrt())
        rate_Z = kl_divergence(q, Normal(0.0, 1.0)).mean(0)
        error_N = turns.distortion_N - model.exact_distortion_N
        assert bound.rate_per_dimension == pytest.approx(rate_Z.tolist(), abs=1e-12)
        assert bound.distortion == pytest.approx(float(model.exact_distortion_N.mean()), abs=4 * standard_error(error_N))
        assert bound.elbo == -(bound.rate + bound.distortion)
        # what the bound lacks is the divergence from the true posterior, which has the same mean
        gap = kl_divergence(
            MultivariateNormal(torch.zeros(2).double(), model.variance_Z.diag()),
            MultivariateNormal(torch.zeros(2).double(), model.posterior_ZZ),
        )
        log_prob = float(model.evidence.log_prob(model.x_NX).mean())
        assert log_prob - bound.elbo == pytest.approx(float(gap), abs=4 * standard_error(error_N))

    def test_bound_of_a_dialogue_is_the_sum_over_its_turns(self) -> None:
        model = Linear(orthogonal=True)
        bound = model.measured(k=1)
        assert bound.dialogues == N / 4
        assert bound.nats_per_dialogue == pytest.approx(4 * -bound.elbo)
        assert bound.nats_per_dialogue_error == pytest.approx(4 * bound.elbo_error, rel=0.15)  # turns are independent

    @pytest.mark.parametrize("orthogonal", [False, True])
    def test_gradient_of_the_bound(self, orthogonal: bool) -> None:
        # Of one x, at 20,000 noises: each has a posterior of its own, whose gradient is one draw of the estimate.
        model, S = Linear(orthogonal, slope=0.5), 20_000
        x_X = model.x_NX[7]
        mean_SZ = ((x_X - model.b_X) @ model.A_ZX.T).repeat(S, 1).requires_grad_()
        log_var_SZ = model.variance_Z.log().repeat(S, 1).requires_grad_()
        zeros_SZ, ones_S = torch.zeros(S, 2).double(), torch.ones(S, dtype=torch.int64)
        inferred = Inferred(Gaussian(mean_SZ, log_var_SZ), Gaussian(zeros_SZ, zeros_SZ), zeros_SZ[:, :0])
        model.infer = lambda batch: inferred  # type: ignore[method-assign, assignment]
        batch = Points(x_X[None], torch.zeros_like(ones_S), ones_S[:, None], ones_S)
        noise_SZ = torch.randn(S, 2, generator=torch.Generator().manual_seed(2)).double()
        terms = VRAE.forward(model, batch, noise_SZ)  # type: ignore[arg-type]
        terms.elbo_B.sum().backward()  # type: ignore[no-untyped-call]

        mean_Z, var_Z, W_XZ = mean_SZ[0].detach(), model.variance_Z, model.W_XZ
        of_mean_Z = W_XZ.T @ (x_X - model.b_X - W_XZ @ mean_Z) / model.sigma**2 - mean_Z
        of_log_var_Z = -0.5 * var_Z * W_XZ.square().sum(0) / model.sigma**2 - 0.5 * (var_Z - 1)
        for found_SZ, expected_Z in ((mean_SZ.grad, of_mean_Z), (log_var_SZ.grad, of_log_var_Z)):
            assert found_SZ is not None
            for found_S, expected in zip(found_SZ.T, expected_Z.tolist(), strict=True):
                assert float(found_S.mean()) == pytest.approx(expected, abs=4 * standard_error(found_S))
        if orthogonal:  # at the true variance it is nought, but that the mean is off
            assert of_log_var_Z.abs().max() < 1e-12
            assert of_mean_Z.abs().max() > 0.1

    @pytest.mark.parametrize("k", [1, 3, 20])
    def test_weights_are_all_the_evidence_where_q_is_the_true_posterior(self, k: int) -> None:
        model = Linear(orthogonal=True)
        turns = model.turns(k)
        log_prob_N = model.evidence.log_prob(model.x_NX).numpy()
        assert turns.nll_iw_N == pytest.approx(-log_prob_N, abs=1e-10)
        assert turns.effective_N == pytest.approx(np.full(N, k), rel=1e-10)
        bound = model.measured(k)
        assert bound.nll_iw == pytest.approx(-log_prob_N.mean(), abs=1e-10)
        assert -bound.elbo == pytest.approx(bound.nll_iw, abs=4 * standard_error(turns.elbo_N - log_prob_N))

    def test_weighted_estimate_falls_to_the_truth_as_k_grows(self) -> None:
        model = Linear()
        truth_N = -model.evidence.log_prob(model.x_NX).numpy()
        found = {k: model.turns(k).nll_iw_N - truth_N for k in (1, 3, 9, 27, 81, 243)}
        means, errors = ([function(values) for values in found.values()] for function in (np.mean, standard_error))
        assert means[0] > 10 * errors[0]
        for here, there, error_here, error_there in zip(means, means[1:], errors, errors[1:], strict=False):
            assert there < here + 4 * math.hypot(error_here, error_there)
        assert all(mean > -4 * error for mean, error in zip(means, errors, strict=True))
        # to first order it is still off by half the squared variation of the weights over k
        assert means[-1] == pytest.approx((self.spread(model) - 1) / 2 / 243, abs=4 * errors[-1])

    @staticmethod
    def spread(model: Linear) -> float:
        """E w^2 / (E w)^2 of w = p(x, z) / q(z | x), where q has the mean of p(z | x) and a larger variance."""
        D, S = model.variance_Z.diag(), model.posterior_ZZ
        inner = 2 * torch.linalg.inv(S) - torch.linalg.inv(D)
        return float(D.det().sqrt() / (S.det() * inner.det().sqrt()))

    def test_effective_samples(self) -> None:
        model = Linear()
        expected = 3000 / self.spread(model)
        assert 1000 < expected < 2900
        assert model.turns(3000, limit=50).effective_N == pytest.approx(np.full(50, expected), rel=0.15)
        assert float(np.median(model.turns(3000, limit=50).effective_N)) == pytest.approx(expected, rel=0.02)

    def test_naive_estimate_is_the_worse_one(self) -> None:
        model = Linear()
        truth = -float(model.evidence.log_prob(model.x_NX).mean())
        bound = model.measured(k=30)
        assert bound.nll_iw is not None
        assert bound.nll_prior is not None
        assert bound.nll_prior_error is not None
        assert bound.nll_prior - truth > 10 * (bound.nll_iw - truth) > 0
        many = model.turns(3000, limit=200)
        error_N = many.nll_prior_N + model.evidence.log_prob(model.x_NX[:200]).numpy()
        assert float(error_N.mean()) == pytest.approx(0, abs=0.05)  # but it gets there too

    @staticmethod
    def few_turns(information: float) -> float:
        """What N turns may lack of the information of all there could be: their average posterior holds each turn's own."""
        return 3 * math.exp(information) / N

    @pytest.mark.parametrize("slope", [0.4, 1.0, 1.5])
    def test_information(self, slope: float) -> None:
        model = Linear(slope=slope)
        bound = model.measured(k=1)
        # z = A (x - b) + noise of variance v, with x from the model
        spread_ZZ = model.A_ZX @ model.evidence.covariance_matrix @ model.A_ZX.T
        aggregated = MultivariateNormal(torch.zeros(2).double(), spread_ZZ + model.variance_Z.diag())
        prior = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
        information = 0.5 * float(aggregated.covariance_matrix.logdet() - model.variance_Z.log().sum())
        kl = float(kl_divergence(aggregated, prior))
        assert bound.mutual_information_error is not None
        assert bound.aggregated_kl_error is not None
        assert 0 < bound.mutual_information_error < 0.05
        bias = self.few_turns(information)
        assert bound.mutual_information == pytest.approx(information, abs=4 * bound.mutual_information_error + bias)
        assert bound.aggregated_kl == pytest.approx(kl, abs=4 * bound.aggregated_kl_error + bias)
        errors = bound.mutual_information_error + bound.aggregated_kl_error
        assert bound.mutual_information + bound.aggregated_kl == pytest.approx(bound.rate, abs=4 * errors)
        assert (bound.information_turns, bound.mutual_information_most) == (N, math.log(N))

    def test_aggregated_posterior_is_the_prior_where_q_is_the_true_posterior(self) -> None:
        model = Linear(orthogonal=True)
        bound = model.measured(k=2)
        information = float((model.W_XZ.T @ model.W_XZ / model.sigma**2 + torch.eye(2).double()).logdet()) / 2
        bias = self.few_turns(information)
        assert bound.aggregated_kl_error is not None
        assert bound.mutual_information_error is not None
        assert bound.aggregated_kl == pytest.approx(0, abs=4 * bound.aggregated_kl_error + bias)
        assert bound.mutual_information == pytest.approx(information, abs=4 * bound.mutual_information_error + bias)
        assert (bound.active_units, bound.collapse.state, bound.warnings[1:]) == (2, "healthy", [])


# GRU models: five pieces, a text of at most two of them or longer ones together, and an integral over z by Gauss-Hermite nodes

PIECES = [piece for piece in range(5) if piece != EOS]
TEXTS = [text for length in range(3) for text in product(PIECES, repeat=length)]
DRAWS = 3000
MODELS: dict[str, dict[str, Any]] = {
    "one dimension": {"latent_size": 1},
    "two dimensions": {"latent_size": 2},
    "flow posterior": {"latent_size": 2, "flow_steps": 3},
    "reply": {"latent_size": 2, "context_turns": 2},
    "mixture prior, one dimension": {"latent_size": 1, "context_turns": 2, "prior": "mixture", "prior_components": 3},
    "mixture prior, two dimensions": {"latent_size": 2, "context_turns": 2, "prior": "mixture", "prior_components": 2},
    "mixture prior, no context": {"latent_size": 2, "prior": "mixture", "prior_components": 2},
    "flow and mixture": {"latent_size": 2, "context_turns": 2, "prior": "mixture", "prior_components": 2, "flow_steps": 3},
}


def nodes(dimensions: int, count: int = 32) -> tuple[Tensor, Tensor]:
    """[G, Z] places and [G] weights of the mean under N(0, I)."""
    place, weight = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(count))
    weight = weight / weight.sum()
    places, weights = torch.cartesian_prod(*[place] * dimensions), torch.cartesian_prod(*[weight] * dimensions)
    return places.view(-1, dimensions), weights.view(-1, dimensions).prod(1)


class Counted:
    """A model, its texts of up to two pieces after one context, and what they are worth by integration."""

    def __init__(self, settings: dict[str, Any]) -> None:
        model = tiny_model(seed=1, vocab_size=5, **settings)
        context = [np.array([4, 3]), np.array([4])] if model.config.context_turns else []
        self.model, self.windows = model, [Window(context, np.array(text, np.int64), [0] * len(context)) for text in TEXTS]
        self._moderate()
        self.batch = collate(self.windows, model.config.context_turns)
        with torch.no_grad():
            self.inferred = model.infer(self.batch)
            self.log_prob_X = torch.stack([self._integral(x) for x in range(len(TEXTS))])

    @torch.no_grad()
    def _moderate(self) -> None:
        """Ends most texts early, and keeps posterior and prior from extremes, for the sake of the weights and the nodes."""
        Z = self.model.config.latent_size
        base = self.model.posterior.base if self.model.config.flow_steps else self.model.posterior
        base.out.weight.mul_(0.3)  # type: ignore[union-attr, operator]
        base.out.bias.mul_(0.3)  # type: ignore[union-attr, operator]
        base.out.bias[Z:] = 0.8  # type: ignore[union-attr, index]
        self.model.decoder.out.bias[EOS] += 2
        for name, parameter in self.model.named_parameters():
            if "couplings" in name or name.startswith("prior.out"):
                parameter.mul_(0.3)

    def latents(self) -> tuple[Tensor, Tensor]:
        """[G, Z] places and [G] weights of the mean under p(z | c); the components of a mixture one after the other."""
        prior, (places_GZ, weight_G) = self.inferred.prior, nodes(self.model.config.latent_size)
        if isinstance(prior, GaussianMixture):
            parts = zip(prior.log_weight_BM[0].exp(), prior.means_BMZ[0], (prior.log_vars_BMZ[0] / 2).exp(), strict=True)
        else:
            parts = zip(torch.ones(1).double(), prior.mean_BZ[:1], (prior.log_var_BZ[:1] / 2).exp(), strict=True)
        places, weights = zip(*[(mean_Z + std_Z * places_GZ, share * weight_G) for share, mean_Z, std_Z in parts], strict=True)
        return torch.cat(places), torch.cat(weights)

    def _integral(self, x: int) -> Tensor:
        """log p(x | c)."""
        z_GZ, weight_G = self.latents()
        return (self.log_text(x, z_GZ) + weight_G.log()).logsumexp(0)

    def log_text(self, x: int, z_GZ: Tensor) -> Tensor:
        many = collate([self.windows[x]] * len(z_GZ), self.model.config.context_turns)
        return self.model.log_prob(many, z_GZ, self.inferred.context_BC[x].expand(len(z_GZ), -1))

    def tail(self) -> float:
        """The probability of the texts of three and more pieces, by the decoder's single steps."""
        z_GZ, weight_G = self.latents()

        def goes_on(ids_G: Tensor, state: DecoderState, pieces: int) -> Tensor:
            if not pieces:
                return torch.ones_like(weight_G)
            logits_GV, state = self.model.decoder.step(ids_G, state)
            prob_GV = logits_GV.softmax(-1)
            parts = [prob_GV[:, piece] * goes_on(torch.full_like(ids_G, piece), state, pieces - 1) for piece in PIECES]
            return torch.stack(parts).sum(0)

        start = self.model.decoder.start(z_GZ, self.inferred.context_BC[:1].expand(len(z_GZ), -1))
        return float(weight_G @ goes_on(torch.full((len(z_GZ),), BOS), start, 3))


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS.keys())
def counted(request: pytest.FixtureRequest) -> Counted:
    return Counted(request.param)


class TestCounted:
    @pytest.fixture(autouse=True)
    def _without_gradients(self) -> Iterator[None]:
        with torch.no_grad():
            yield

    def test_texts_and_the_rest_have_probability_one(self, counted: Counted) -> None:
        tail = counted.tail()
        assert float(counted.log_prob_X.exp().sum()) + tail == pytest.approx(1, abs=1e-9)
        assert 0.001 < tail < 0.99

    def test_weighted_estimate_is_the_integral(self, counted: Counted) -> None:
        noise = Noise([3], np.arange(len(TEXTS)))
        found = draw(counted.model, counted.batch, counted.inferred, counted.inferred.posterior, DRAWS, noise)
        assert found.effective_B.min() > 50
        error_X = found.effective_B.rsqrt()  # of the log of a mean of weights, to first order
        score_X = (found.log_mean_B - counted.log_prob_X) / error_X
        assert score_X.abs().max() < 5
        whole = float(found.log_mean_B.exp().sum()) + counted.tail()
        assert whole == pytest.approx(1, abs=4 * float((found.log_mean_B.exp() * error_X).square().sum().sqrt()))

    def test_naive_estimate_is_the_integral_too(self, counted: Counted) -> None:
        noise = Noise([4], np.arange(len(TEXTS)))
        found = draw(counted.model, counted.batch, counted.inferred, counted.inferred.prior, DRAWS, noise)
        assert ((found.log_mean_B - counted.log_prob_X) * found.effective_B.sqrt()).abs().max() < 5

    def test_rate_and_distortion_are_means_under_the_posterior(self, counted: Counted) -> None:
        # Nodes of the noise, bent to z, are nodes of the posterior; log q - log p is not asked of `divergence` here.
        noise_GZ, weight_G = nodes(counted.model.config.latent_size)
        found = draw(
            counted.model,
            counted.batch,
            counted.inferred,
            counted.inferred.posterior,
            DRAWS,
            Noise([5], np.arange(len(TEXTS))),
        )
        for x in range(0, len(TEXTS), 5):
            rows = torch.full((len(noise_GZ),), x)
            many = collate([counted.windows[i] for i in rows.tolist()], counted.model.config.context_turns)
            inferred = counted.model.infer(many)
            z_GZ = inferred.posterior.sample(noise_GZ)
            log_ratio_G = (inferred.posterior.log_prob(z_GZ) - inferred.prior.log_prob(z_GZ)).sum(-1)
            nats_G = -counted.log_text(x, z_GZ)
            for values_G, estimate in ((nats_G, found.distortion_B[x]), (log_ratio_G, found.rate_BZ[x].sum())):
                mean = float(weight_G @ values_G)
                error = math.sqrt(float(weight_G @ (values_G - mean).square()) / DRAWS)
                assert float(estimate) == pytest.approx(mean, abs=5 * error + 1e-9)
