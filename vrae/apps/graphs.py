"""The model cut into graphs of fixed inputs and outputs, as `vrae export` writes them.

    posterior    a turn (and c)         -> mean and log-variance of q(z | x, c)
    context      the turns before       -> c, mean and log-variance of p(z | c); of a mixture each component's, and weights
    prior        nothing                -> p(z) likewise, where there is no context and p(z) is a mixture
    start        z and c                -> what the decoder knows before the first token
    step         a token and the state  -> logits of the next token, and the state after it

They compute what `vrae.model` does, from the same weights, in another way where it must be: a packed sequence cannot be
exported. So turns are padded here, a GRU runs over the padding too, and its state is taken where the turn ends; backwards it
reads the tokens of each turn in reverse, padding last.

Shape legend: N turns, B texts or dialogues, K context turns, T tokens, X input, H state, L layers, E embedding, Z latent,
C context state, M components of a mixture, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vrae.model.decoder import Decoder
from vrae.model.encoder import TurnEncoder
from vrae.model.gaussian import Density
from vrae.model.mixture import GaussianMixture
from vrae.model.vrae import VRAE

_PARAMETERS = "weight_ih", "weight_hh", "bias_ih", "bias_hh"


class Array(NamedTuple):
    """An input or an output of a graph."""

    dtype: str  # int64 or float32
    shape: tuple[str | int, ...]  # a name where the size is the caller's choice


class Graph(NamedTuple):
    """One graph, and what it takes and gives, in order. The module takes all inputs as `*arrays`."""

    module: nn.Module
    inputs: dict[str, Array]
    outputs: dict[str, Array]


def graphs(model: VRAE) -> dict[str, Graph]:
    """The graphs of a model in eval mode. It has a latent or a context, and a Gaussian posterior."""
    config, cells = model.config, model.decoder.gru
    latent = {"z": _float("batch", config.latent_size)} if config.latent_size else {}
    context = {"context": _float("batch", config.context_size)} if config.context_turns else {}
    density = {name: _float("batch", config.latent_size) for name in ("mean", "log_var")} if config.latent_size else {}
    prior = density
    if config.latent_size and config.prior_of_context == "mixture":
        parts = {name: _float("batch", config.prior_components, config.latent_size) for name in density}
        prior = {"log_weight": _float("batch", config.prior_components), **parts}
    added = ("condition", *(["skip"] if config.skip_latent else []))
    known = {name: _float("batch", config.embedding_size) for name in added}
    state = _float(cells.num_layers, "batch", cells.hidden_size)
    found = {}
    if config.latent_size:
        turn = {"ids": _whole("batch", "tokens"), "lengths": _whole("batch")}
        found["posterior"] = Graph(_Posterior(model), {**turn, **context}, density)
    if config.context_turns:
        turns = {"ids": _whole("batch", "turns", "tokens"), "lengths": _whole("batch", "turns"), "count": _whole("batch")}
        speakers = {"same_speaker": _whole("batch", "turns")} if config.speakers else {}
        found["context"] = Graph(_Context(model), {**turns, **speakers}, {**context, **prior})
    elif prior is not density:
        one = {name: Array(array.dtype, (1, *array.shape[1:])) for name, array in prior.items()}
        found["prior"] = Graph(_Prior(model), {}, one)
    found["start"] = Graph(_Start(model.decoder), {**latent, **context}, {**known, "state": state})
    logits = _float("batch", config.vocab_size)
    taken = {"ids": _whole("batch"), **known, "state": state}
    found["step"] = Graph(_Step(model.decoder), taken, {"logits": logits, "next_state": state})
    return found


def _whole(*shape: str | int) -> Array:
    return Array("int64", shape)


def _float(*shape: str | int) -> Array:
    return Array("float32", shape)


class _Posterior(nn.Module):
    """q(z | x, c) of turns, each ending in eos."""

    def __init__(self, model: VRAE) -> None:
        super().__init__()
        self.turns, self.posterior = _TurnReader(model.turn_encoder), model.posterior

    def forward(self, *arrays: Tensor) -> Sequence[Tensor]:
        ids_NT, lengths_N, *context_NC = arrays
        posterior = self.posterior(torch.cat([self.turns(ids_NT, lengths_N), *context_NC], -1))
        return posterior.mean_BZ, posterior.log_var_BZ


class _Context(nn.Module):
    """c and p(z | c) of dialogues: the first `counts_B` of their K turns are there, oldest first."""

    def __init__(self, model: VRAE) -> None:
        super().__init__()
        self.turns, self.empty_C = _TurnReader(model.turn_encoder), model.context_encoder.empty_C
        self.speaker, self.layer = model.context_encoder.speaker, _Layer(model.context_encoder.gru, "l0")
        self.prior = model.prior if model.config.latent_size else None

    def forward(self, *arrays: Tensor) -> Sequence[Tensor]:
        ids_BKT, lengths_BK, counts_B, *same_speaker_BK = arrays
        B, K, T = ids_BKT.shape
        turns_BKH = self.turns(ids_BKT.reshape(B * K, T), lengths_BK.reshape(B * K)).view(B, K, -1)
        if self.speaker is not None:
            turns_BKH = turns_BKH + self.speaker(*same_speaker_BK)
        _, context_BC = self.layer(turns_BKH, counts_B, self.empty_C.expand(B, -1))
        if self.prior is None:
            return (context_BC,)
        return context_BC, *_parameters(self.prior(context_BC))


class _Prior(nn.Module):
    """p(z) of a model that reads no context: the same for all, so a batch of one."""

    def __init__(self, model: VRAE) -> None:
        super().__init__()
        self.prior = model.prior

    def forward(self, *arrays: Tensor) -> Sequence[Tensor]:
        return _parameters(self.prior(torch.zeros(1, 0)))


def _parameters(prior: Density) -> Sequence[Tensor]:
    """Log-weights, means and log-variances of a mixture's components, or a Gaussian's mean and log-variance."""
    if isinstance(prior, GaussianMixture):
        return prior.log_weight_BM, prior.means_BMZ.clone(), prior.log_vars_BMZ  # no output may be a weight itself
    return prior.mean_BZ, prior.log_var_BZ.clone()  # N(0, I) has one tensor for both


class _Start(nn.Module):
    """`Decoder.start`, of z, of c, or of both."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, *arrays: Tensor) -> Sequence[Tensor]:
        config, nothing_B0 = self.decoder.config, arrays[0][:, :0]
        z_BZ = arrays[0] if config.latent_size else nothing_B0
        found = self.decoder.start(z_BZ, arrays[-1] if config.context_turns else nothing_B0)
        return found.condition_BE, *((found.skip_BE,) if config.skip_latent else ()), found.state_LBH


class _Step(nn.Module):
    """`Decoder.step`, with torch's own GRU instead of one made for a CPU."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.layers = nn.ModuleList(_Layer(decoder.gru, f"l{layer}") for layer in range(decoder.gru.num_layers))

    def forward(self, *arrays: Tensor) -> Sequence[Tensor]:
        decoder, (ids_B, condition_BE, *skip, state_LBH) = self.decoder, arrays
        inputs_BX, states = decoder.embedding(ids_B) + condition_BE, []
        for place, layer in enumerate(self.layers):
            inputs_BX = layer.run(inputs_BX[None], state_LBH[place])[0]  # type: ignore[operator]
            states.append(inputs_BX)
        features_BE = decoder.project(inputs_BX)
        for skip_BE in skip:
            features_BE = features_BE + skip_BE
        return F.linear(features_BE, decoder.out.weight, decoder.out.bias), torch.stack(states)


class _TurnReader(nn.Module):
    """`TurnEncoder` for padded turns. What stands behind a turn's end does not matter, and its length may be 0."""

    def __init__(self, encoder: TurnEncoder) -> None:
        super().__init__()
        self.embedding = encoder.embedding
        ways = ("", "_reverse") if encoder.gru.bidirectional else ("",)
        self.layers = nn.ModuleList(
            nn.ModuleList(_Layer(encoder.gru, f"l{layer}{way}") for way in ways) for layer in range(encoder.gru.num_layers)
        )

    def forward(self, ids_NT: Tensor, lengths_N: Tensor) -> Tensor:
        """[N, T] ids and their lengths to [N, H]."""
        inputs_NTX: Tensor = self.embedding(ids_NT)
        backwards_NT1 = _backwards(lengths_N, ids_NT)[:, :, None]
        for ways in self.layers:
            assert isinstance(ways, nn.ModuleList)
            found = []
            for way, layer in enumerate(ways):
                assert isinstance(layer, _Layer)
                given_NTX = inputs_NTX.gather(1, backwards_NT1.expand_as(inputs_NTX)) if way else inputs_NTX
                states_NTH, last_NH = layer(given_NTX, lengths_N, inputs_NTX.new_zeros(ids_NT.shape[0], layer.size))
                found.append((states_NTH.gather(1, backwards_NT1.expand_as(states_NTH)) if way else states_NTH, last_NH))
            inputs_NTX = torch.cat([states_NTH for states_NTH, _ in found], -1)
        return torch.cat([last_NH for _, last_NH in found], -1)


def _backwards(lengths_N: Tensor, ids_NT: Tensor) -> Tensor:
    """[N, T] places: those of the tokens in reverse, then those of the padding. It undoes itself."""
    places_NT = torch.arange(ids_NT.shape[1])[None].expand_as(ids_NT)
    return torch.where(places_NT < lengths_N[:, None], lengths_N[:, None] - 1 - places_NT, places_NT)


class _Layer(nn.Module):
    """One layer of a GRU in one direction, its weights as ONNX has them: one direction first, gates update, reset, new."""

    def __init__(self, gru: nn.GRU, name: str) -> None:
        super().__init__()
        w_in, w_state, b_in, b_state = (getattr(gru, f"{parameter}_{name}").detach() for parameter in _PARAMETERS)
        self.size = gru.hidden_size
        self.register_buffer("w_in", swap_gates(w_in)[None])
        self.register_buffer("w_state", swap_gates(w_state)[None])
        self.register_buffer("bias", torch.cat([swap_gates(b_in), swap_gates(b_state)])[None])

    def run(self, inputs_TBX: Tensor, state_BH: Tensor) -> Tensor:
        """[T, B, H] states."""
        states_TBH: Tensor = gru_layer(inputs_TBX, self.w_in, self.w_state, self.bias, state_BH[None])
        return states_TBH

    def forward(self, inputs_NTX: Tensor, lengths_N: Tensor, state_NH: Tensor) -> tuple[Tensor, Tensor]:
        """All states [N, T, H], and the one after `lengths_N` steps: `state_NH` itself where that is 0."""
        states_NTH = self.run(inputs_NTX.transpose(0, 1), state_NH).transpose(0, 1)
        reached_NTH = torch.cat([state_NH[:, None], states_NTH], 1)
        return states_NTH, reached_NTH.gather(1, lengths_N[:, None, None].expand(-1, 1, self.size))[:, 0]


def swap_gates(value_3HX: Tensor) -> Tensor:
    """torch's gates reset, update, new in the order of ONNX: update, reset, new. And back."""
    reset, update, new = value_3HX.chunk(3)
    return torch.cat([update, reset, new])


@torch.library.custom_op("vrae::gru_layer", mutates_args=())
def gru_layer(inputs_TBX: Tensor, w_in: Tensor, w_state: Tensor, bias: Tensor, state_1BH: Tensor) -> Tensor:
    """[T, B, H], ONNX's GRU in torch: an operator of our own, so that the exporter leaves it whole (`export.onnx_gru`).

    torch 2.13 unrolls its own GRU to a fixed number of steps, from the second graph of a process on.
    """
    b_in, b_state = bias[0].chunk(2)
    weights = [swap_gates(value) for value in (w_in[0], w_state[0], b_in, b_state)]
    states_TBH, _ = torch.gru(
        inputs_TBX, state_1BH.contiguous(), weights,
        has_biases=True, num_layers=1, dropout=0.0, train=False, bidirectional=False, batch_first=False,
    )  # fmt: skip
    return states_TBH


@gru_layer.register_fake
def _shape(inputs_TBX: Tensor, w_in: Tensor, w_state: Tensor, bias: Tensor, state_1BH: Tensor) -> Tensor:
    return inputs_TBX.new_empty(inputs_TBX.shape[0], *state_1BH.shape[1:])
