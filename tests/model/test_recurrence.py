"""The GRU made for a CPU against torch's, and its gradients against differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from vrae.model.recurrence import run_gru

LENGTHS = torch.tensor([3, 7, 1, 4, 7, 2])
SHAPES = [(1, False), (1, True), (2, False), (2, True)]


def setting(layers: int, both: bool) -> tuple[nn.GRU, Tensor, Tensor]:
    """A GRU, inputs [B, T, X] and first states, float64."""
    torch.manual_seed(0)
    gru = nn.GRU(3, 4, layers, bidirectional=both).double()
    inputs_BTX = torch.randn(len(LENGTHS), 7, 3, dtype=torch.float64, requires_grad=True)
    state_LBH = torch.randn(layers * (1 + both), len(LENGTHS), 4, dtype=torch.float64, requires_grad=True)
    return gru, inputs_BTX, state_LBH


def pack(inputs_BTX: Tensor) -> PackedSequence:
    return pack_padded_sequence(inputs_BTX, LENGTHS, batch_first=True, enforce_sorted=False)


@pytest.mark.parametrize(("layers", "both"), SHAPES)
@pytest.mark.parametrize("with_state", [True, False])
def test_states_and_gradients_are_those_of_torch(layers: int, both: bool, with_state: bool) -> None:
    gru, inputs_BTX, state_LBH = setting(layers, both)
    state = state_LBH if with_state else None
    expected, expected_last = gru(pack(inputs_BTX), state)
    found, last = run_gru(gru, pack(inputs_BTX), state)
    torch.testing.assert_close(found, expected.data, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, expected_last, rtol=1e-12, atol=1e-12)
    of = [inputs_BTX, *gru.parameters(), *([state_LBH] if with_state else [])]
    weights = torch.randn_like(found), torch.randn_like(last)
    pairs = (found, last), (expected.data, expected_last)
    ours, theirs = (torch.autograd.grad((a * weights[0]).sum() + (b * weights[1]).sum(), of) for a, b in pairs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("both", [False, True])
def test_gradients_are_the_slopes(both: bool) -> None:
    gru, inputs_BTX, state_LBH = setting(1, both)
    names = [name for name, _ in gru.named_parameters()]

    def run(inputs_BTX: Tensor, state_LBH: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        stand_in = nn.GRU(3, 4, bidirectional=both).double()
        for name, value in zip(names, values, strict=True):
            delattr(stand_in, name)
            setattr(stand_in, name, value)
        return run_gru(stand_in, pack(inputs_BTX), state_LBH)

    assert torch.autograd.gradcheck(run, (inputs_BTX, state_LBH, *gru.parameters()), fast_mode=True)


@pytest.mark.parametrize("used", ["states", "last"])
def test_one_of_the_two_results_may_go_unused(used: str) -> None:
    gru, inputs_BTX, state_LBH = setting(1, True)
    states, last_LBH = run_gru(gru, pack(inputs_BTX), state_LBH)
    expected, expected_last_LBH = gru(pack(inputs_BTX), state_LBH)
    pair = (states, expected.data) if used == "states" else (last_LBH, expected_last_LBH)
    ours, theirs = (torch.autograd.grad(value.square().sum(), [inputs_BTX, state_LBH]) for value in pair)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_the_given_state_is_left_as_it_is() -> None:
    gru, inputs_BTX, state_LBH = setting(1, False)
    before = state_LBH.detach().clone()
    with torch.no_grad():
        run_gru(gru, pack(inputs_BTX), state_LBH)
    assert torch.equal(state_LBH, before)


def test_dropout_between_layers_is_for_training_alone() -> None:
    gru, inputs_BTX, _ = setting(2, False)
    gru.dropout = 0.5
    gru.eval()
    plain, again = (run_gru(gru, pack(inputs_BTX))[0] for _ in range(2))
    assert torch.equal(plain, again)
    gru.train()
    assert not torch.equal(run_gru(gru, pack(inputs_BTX))[0], plain)


def test_under_autocast_states_keep_the_precision_of_the_weights() -> None:
    """Products are rounded to 8 bits, states are not: rounding does not add up over 400 steps of a state that barely moves."""
    torch.manual_seed(0)
    gru = nn.GRU(3, 4)
    with torch.no_grad():
        for name, parameter in gru.named_parameters():
            parameter.zero_()
            if name == "bias_ih_l0":
                parameter[4:8] = 8.0  # u = 0.99966
    packed = pack_padded_sequence(torch.zeros(1, 400, 3), torch.tensor([400]), batch_first=True)
    with torch.autocast("cpu", torch.bfloat16):
        states_PH, last_1BH = run_gru(gru, packed, torch.ones(1, 1, 4))
    assert states_PH.dtype == last_1BH.dtype == torch.float32
    torch.testing.assert_close(last_1BH, torch.full((1, 1, 4), float(torch.tensor(8.0).sigmoid()) ** 400), rtol=1e-4, atol=0.0)


def test_gradients_under_autocast_are_near_those_without() -> None:
    torch.manual_seed(0)
    gru, inputs_BTX = nn.GRU(8, 16, bidirectional=True), torch.randn(6, 7, 8)
    exact, rounded = [], []
    for found, on in ((exact, False), (rounded, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            states_PH, _ = run_gru(gru, pack(inputs_BTX))
        found += torch.autograd.grad(states_PH.square().sum(), list(gru.parameters()))
    for a, b in zip(exact, rounded, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert (a - b).norm() < 0.02 * a.norm()
