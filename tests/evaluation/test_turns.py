"""The figures of a turn: what they do not depend on, and those that have another derivation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_windows, tiny_model

from vrae.corpus.batches import collate
from vrae.evaluation.turns import Turns, join_turns, measure_batch
from vrae.model import bound
from vrae.model.bound import Noise
from vrae.model.gaussian import Gaussian

KINDS: dict[str, dict[str, Any]] = {
    "autoencoder": {"context_turns": 0},
    "reply": {"context_turns": 2},
    "mixture prior": {"context_turns": 2, "prior": "mixture", "prior_components": 3},
    "mixture without context": {"context_turns": 0, "prior": "mixture", "prior_components": 3},
    "flow posterior": {"context_turns": 0, "flow_steps": 2},
    "flow and mixture": {"context_turns": 2, "prior": "mixture", "flow_steps": 3},
    "no latent": {"context_turns": 2, "latent_size": 0},
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def same(one: Turns, other: Turns, tolerance: float = 1e-11) -> bool:
    return all(np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True) for a, b in zip(one, other, strict=True))


class TestBatched:
    @pytest.mark.parametrize("k", [0, 3])
    @each_kind
    def test_is_alone(self, kind: dict[str, Any], k: int) -> None:
        model, turns = tiny_model(**kind), random_windows(9, kind["context_turns"])
        numbers_B = np.array([40, 3, 77, 1, 2, 9, 1000, 8, 500])
        together = measure_batch(model, numbers_B, collate(turns, kind["context_turns"]), k=k, seed=4)
        for i in range(9):
            alone = measure_batch(model, numbers_B[i : i + 1], collate(turns[i : i + 1], kind["context_turns"]), k=k, seed=4)
            assert same(alone, Turns(*(value[i : i + 1] for value in together)))

    @each_kind
    def test_is_the_same_however_many_draws_are_side_by_side(
        self, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, batch = tiny_model(**kind), collate(random_windows(9, kind["context_turns"]), kind["context_turns"])
        whole = measure_batch(model, np.arange(9), batch, k=7, seed=4)
        for at_once in (1, 2, 3, 6):
            monkeypatch.setattr(bound, "_TOKENS", {"cpu": at_once * batch.tokens})
            assert same(measure_batch(model, np.arange(9), batch, k=7, seed=4), whole)

    def test_draws_nothing_twice(self) -> None:
        # From the same draws the weighted estimate would be the same for posterior = prior; here the streams differ.
        model, batch = tiny_model(), collate(random_windows(9, 0), 0)
        with torch.no_grad():
            model.posterior.out.weight.zero_()  # type: ignore[union-attr, operator]
            model.posterior.out.bias.zero_()  # type: ignore[union-attr, operator]
        found = measure_batch(model, np.arange(9), batch, k=2, seed=0)
        assert (found.nll_iw_N != found.nll_prior_N).all()
        assert (found.distortion_N != found.distortion_prior_N).all()
        assert (found.nll_iw_N < found.distortion_N).all()  # two draws differ: log of mean > mean of log

    @each_kind
    def test_weighted_estimate_of_one_draw_is_the_bound_at_it(self, kind: dict[str, Any]) -> None:
        model, batch = tiny_model(**kind), collate(random_windows(9, kind["context_turns"]), kind["context_turns"])
        with torch.no_grad():
            inferred = model.infer(batch)
            noise = Noise([6, 0], np.arange(9)).draw(1, inferred.posterior.noise_size).double()
            z_BZ = inferred.posterior.sample(noise)
            distortion_B = -model.log_prob(batch, z_BZ, inferred.context_BC)
            ratio_B = (inferred.posterior.log_prob(z_BZ) - inferred.prior.log_prob(z_BZ)).sum(-1)
        found = measure_batch(model, np.arange(9), batch, k=1, seed=6)
        assert found.distortion_N == pytest.approx(distortion_B.numpy(), abs=1e-12)
        assert found.nll_iw_N == pytest.approx((distortion_B + ratio_B).numpy(), abs=1e-11)
        assert found.effective_N == pytest.approx(np.ones(9))
        if not isinstance(inferred.posterior, Gaussian) or not isinstance(inferred.prior, Gaussian):
            assert found.rate_NZ.sum(-1) == pytest.approx(ratio_B.numpy(), abs=1e-11)

    def test_rate_between_gaussians_is_exact(self) -> None:
        model, turns = tiny_model(context_turns=2), random_windows(9, 2)
        batch = collate(turns, 2)
        with torch.no_grad():
            q, p = (
                torch.distributions.Normal(g.mean_BZ, (g.log_var_BZ / 2).exp())
                for g in (model.infer(batch).posterior, model.infer(batch).prior)
            )
            rate_BZ = torch.distributions.kl_divergence(q, p)
        for k in (0, 5):
            found = measure_batch(model, np.arange(9), batch, k=k, seed=0)
            assert found.rate_NZ == pytest.approx(rate_BZ.numpy(), abs=1e-12)

    @pytest.mark.parametrize("k", [1, 50])
    def test_without_latent_every_estimate_is_the_log_likelihood(self, k: int) -> None:
        model, batch = tiny_model(context_turns=2, latent_size=0), collate(random_windows(9, 2), 2)
        with torch.no_grad():
            nats_B = -model.log_prob(batch, torch.zeros(9, 0, dtype=torch.float64), model.condition(batch)[1])
        found = measure_batch(model, np.arange(9), batch, k=k, seed=0)
        for nats_N in (found.distortion_N, found.nll_iw_N, found.nll_prior_N, found.distortion_prior_N, -found.elbo_N):
            assert nats_N == pytest.approx(nats_B.numpy(), abs=1e-12)
        assert found.effective_N == pytest.approx(np.full(9, k))
        assert found.rate_NZ.shape == found.offsets_NZ.shape == (9, 0)

    def test_offsets_are_those_from_the_prior_of_the_context(self) -> None:
        model, batch = tiny_model(context_turns=2), collate(random_windows(9, 2), 2)
        with torch.no_grad():
            q, p, _ = model.infer(batch)
        found = measure_batch(model, np.arange(9), batch, k=0, seed=0)
        assert found.offsets_NZ == pytest.approx(((q.mean_BZ - p.mean_BZ) / (p.log_var_BZ / 2).exp()).numpy(), abs=1e-12)

    def test_counts_end_marks(self) -> None:
        turns = random_windows(9, 0)
        found = measure_batch(tiny_model(), np.arange(9), collate(turns, 0), k=0, seed=0)
        assert found.tokens_N.tolist() == [len(window.target) + 1 for window in turns]
        assert all(np.isnan(values).all() for values in found[5:])


class TestJoining:
    def test_puts_turns_in_the_order_of_the_split(self) -> None:
        model, turns = tiny_model(), random_windows(9, 0)
        numbers_B = np.array([5, 2, 8, 0, 1, 7, 3, 6, 4])
        whole = measure_batch(model, numbers_B, collate(turns, 0), k=2, seed=0)
        parts = [Turns(*(value[rows] for value in whole)) for rows in (slice(6, 9), slice(0, 2), slice(2, 6))]
        joined = join_turns(parts, 4)
        assert joined.window_N.tolist() == list(range(9))
        assert all(np.array_equal(a, b[np.argsort(numbers_B)]) for a, b in zip(joined, whole, strict=True))

    def test_of_nothing_has_the_right_widths(self) -> None:
        nothing = join_turns([], 3)
        assert nothing.rate_NZ.shape == nothing.offsets_NZ.shape == (0, 3)
        assert nothing.elbo_N.shape == nothing.window_N.shape == (0,)
