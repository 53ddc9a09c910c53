"""Muon against the singular value decomposition and its own equations; AdamW is torch's; every parameter has one of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from torch import Tensor, nn

from vrae.config import ModelConfig, TrainConfig
from vrae.model.vrae import VRAE
from vrae.training.objective import BagOfWords
from vrae.training.optimizer import MuonAdamW, make_optimizer, orthogonalise


def matrices(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_singular_values(matrix_MN: Tensor) -> np.ndarray:
    """What five iterations of s -> 3.4445 s - 4.775 s^3 + 2.0315 s^5 make of each singular value s of the scaled matrix."""
    left, values, right = np.linalg.svd(matrix_MN.numpy(), full_matrices=False)
    values = values / math.sqrt((values**2).sum())
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    made: np.ndarray = left * values @ right
    return made


class TestOrthogonalise:
    @pytest.mark.parametrize("shape", [(5, 5), (4, 7), (7, 4), (1, 6), (6, 1)])
    def test_changes_singular_values_and_nothing_else(self, shape: tuple[int, int]) -> None:
        matrices_GMN = matrices(3, *shape)
        found = orthogonalise(matrices_GMN, torch.float64)
        for matrix, made in zip(matrices_GMN, found, strict=True):
            np.testing.assert_allclose(made.numpy(), by_singular_values(matrix), rtol=1e-9, atol=1e-12)

    def test_brings_singular_values_near_one(self) -> None:
        left, right = (torch.linalg.qr(matrices(8, 8, seed=seed)).Q for seed in (1, 2))
        sizes = torch.logspace(0, -1.5, 8, dtype=torch.float64)
        values = torch.linalg.svdvals(orthogonalise((left * sizes @ right)[None], torch.float64))
        assert ((values > 0.65) & (values < 1.2)).all()

    @pytest.mark.parametrize("factor", [1e-12, 1e12])
    def test_does_not_see_the_size_of_a_matrix(self, factor: float) -> None:
        one = matrices(2, 4, 6)
        torch.testing.assert_close(orthogonalise(one * factor, torch.float64), orthogonalise(one, torch.float64))

    def test_leaves_zeros(self) -> None:
        assert not orthogonalise(torch.zeros(2, 3, 4), torch.float32).any()

    def test_in_bf16_is_near(self) -> None:
        one = matrices(2, 40, 60).float()
        rough = orthogonalise(one, torch.bfloat16)
        assert rough.dtype == torch.float32
        assert (rough - orthogonalise(one, torch.float32)).norm() < 0.03 * rough.norm()


def optimizer(*groups: dict[str, Any], lr: float = 0.1) -> MuonAdamW:
    return MuonAdamW(groups, lr, (0.9, 0.99))


class TestMuon:
    def test_follows_its_equations(self) -> None:
        start, gradients = matrices(6, 5), matrices(3, 6, 5, seed=1)
        weight = nn.Parameter(start.clone())
        muon = optimizer({"params": [("w", weight)], "gates": 2, "weight_decay": 0.3})
        expected, mean = start.numpy().copy(), np.zeros((6, 5))
        for gradient in gradients:
            weight.grad = gradient.clone()
            muon.step()
            mean = 0.95 * mean + 0.05 * gradient.numpy()
            ahead = torch.from_numpy(0.95 * mean + 0.05 * gradient.numpy())
            made = np.concatenate([by_singular_values(ahead[:3]), by_singular_values(ahead[3:])])
            expected = expected - 0.1 * 0.3 * expected - 0.1 * 0.05 * math.sqrt(5) * made
            np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-9)
        assert muon.state[weight]["step"] == 3
        np.testing.assert_allclose(muon.state[weight]["exp_avg"].numpy(), mean, rtol=1e-12)
        assert weight.grad is None

    @pytest.mark.parametrize("shape", [(64, 64), (64, 16), (16, 64)])
    def test_takes_steps_of_one_size_whatever_the_shape(self, shape: tuple[int, int]) -> None:
        weight = nn.Parameter(torch.zeros(shape))
        muon = optimizer({"params": [("w", weight)], "gates": 1, "weight_decay": 0.0}, lr=0.01)
        weight.grad = matrices(*shape).float()
        muon.step()
        assert 0.7 * 0.05 * 0.01 < weight.detach().square().mean().sqrt() < 1.15 * 0.05 * 0.01

    def test_leaves_what_has_no_gradient(self) -> None:
        weight = nn.Parameter(matrices(4, 4))
        muon = optimizer({"params": [("w", weight)], "gates": 1, "weight_decay": 0.1})
        muon.step()
        assert torch.equal(weight, matrices(4, 4))
        assert not muon.state


def test_adamw_is_torchs() -> None:
    ours, theirs = (nn.Parameter(matrices(6, 5)) for _ in range(2))
    one = optimizer({"params": [("w", ours)], "weight_decay": 0.1})
    other = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    for gradient in matrices(4, 6, 5, seed=1):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        one.step()
        other.step()
    assert torch.equal(ours, theirs)


def groups_of(bag: bool = False, **settings: Any) -> tuple[dict[int, set[str]], set[str]]:
    """The names in the groups of each number of gates, and all names there should be."""
    model = VRAE(ModelConfig(**{**TINY, **settings}))
    bag_of_words = BagOfWords(model.config) if bag else None
    found = make_optimizer(model, bag_of_words, TrainConfig(weight_decay=0.2), "fp32").param_groups
    named = [name for group in found for name in group["param_names"]]
    assert len(named) == len(set(named))
    assert all(group["weight_decay"] == (0.2 if group["gates"] else 0.0) for group in found)
    names = {name for name, _ in model.named_parameters()}
    names |= {f"bag_of_words.{name}" for name, _ in bag_of_words.named_parameters()} if bag_of_words else set()
    return {group["gates"]: set(group["param_names"]) for group in found}, names


class TestMakeOptimizer:
    def test_gives_each_parameter_its_own(self) -> None:
        groups, names = groups_of(bag=True, context_turns=2, speakers=True)
        assert groups[3] == {name for name in names if ".gru.weight" in name}
        assert groups[1] == {
            *("posterior.out.weight", "prior.hidden.0.weight", "prior.out.weight", "bag_of_words.hidden.weight"),
            *("decoder.start_state.weight", "decoder.condition.weight", "decoder.project.weight"),
        }
        tables = {"turn_encoder.embedding.weight", "context_encoder.speaker.weight", "bag_of_words.out.weight"}
        assert tables <= groups[0]
        assert groups[0] - tables == {name for name in names if "bias" in name or name.endswith("_C")}

    @pytest.mark.parametrize("settings", [dict(latent_size=0), dict(flow_steps=2), dict(skip_latent=True, encoder_layers=2)])
    @pytest.mark.parametrize("tied", [False, True])
    def test_forgets_none(self, settings: dict[str, Any], tied: bool) -> None:
        groups, names = groups_of(tied_output=tied, **settings)
        assert set.union(*groups.values()) == names
        assert tied or "decoder.out.weight" in groups[0]

    def test_of_adamw_alone_has_no_gates_and_decays_all_matrices(self) -> None:
        model = VRAE(ModelConfig(**TINY))
        options = TrainConfig(optimizer="adamw", weight_decay=0.2)
        matrices, biases = make_optimizer(model, None, options, "fp32").param_groups
        assert (matrices["gates"], matrices["weight_decay"], biases["gates"], biases["weight_decay"]) == (0, 0.2, 0, 0.0)
        assert set(matrices["param_names"]) == {name for name, p in model.named_parameters() if p.ndim == 2}
        assert set(biases["param_names"]) == {name for name, p in model.named_parameters() if p.ndim == 1}

    def test_splits_gates_even_where_there_are_as_many_rows_as_tokens(self) -> None:
        groups, _ = groups_of(vocab_size=18, hidden_size=6)
        assert "decoder.gru.weight_hh_l0" in groups[3]

    def test_multiplies_in_the_precision_of_the_model(self) -> None:
        model = VRAE(ModelConfig(**TINY))
        for precision, dtype in (("bf16", torch.bfloat16), ("fp32", None)):
            made = make_optimizer(model, None, TrainConfig(), precision)
            assert isinstance(made, MuonAdamW)
            assert made.dtype == dtype
