"""What a training step, and writing, have to multiply: the floor under their time.

Shape legend: P tokens, b texts that reach a step of a GRU.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vrae.corpus.batches import Batch
from vrae.model.products import linear
from vrae.model.vrae import VRAE


class Layer(NamedTuple):
    """A matrix of `outputs` x `inputs`, through which rows of numbers pass."""

    name: str
    outputs: int
    inputs: int
    rows: list[int]  # of each product: the next one needs the result of the one before
    learns: bool = True

    @property
    def operations(self) -> int:
        """Additions and multiplications: 2 * outputs * inputs for each row, forward; where the model learns, as many again for
        the gradient at the rows, and for that at the matrix."""
        return (6 if self.learns else 2) * self.outputs * self.inputs * sum(self.rows)


def layers(model: VRAE, batch: Batch) -> list[Layer]:
    """All matrices of the model and the rows that a training step with one posterior sample sends through them.

    Each distinct turn is read once: its tokens, end mark included, through the turn encoder. A context turn passes through the
    context encoder in each window it stands in. A window has one row in the networks of the latent and in what starts the
    decoder, and its target's tokens, end mark included, pass through the decoder and the output layer. Nothing is counted for
    padding, nor for what is not a product of matrices: a GRU's gates, the softmax and the optimiser. A flow counts once.
    """
    config, decoder, B = model.config, model.decoder, len(batch.target_B)
    found = []
    if config.latent_size or config.context_turns:
        found += _gru("turn encoder", model.turn_encoder.gru, batch.turn_lengths_N)
    if config.context_turns:
        some_S = batch.context_lengths_B[batch.context_lengths_B > 0]
        found += _gru("context encoder", model.context_encoder.gru, some_S)
    one_row = [("latent", model.posterior), ("latent", model.prior)]
    one_row += [("start", decoder.start_state), ("start", decoder.condition)]
    one_row += [("start", decoder.skip)] if config.skip_latent else []
    found += [
        Layer(name, len(matrix), matrix.shape[1], [B])
        for name, module in one_row
        for matrix in module.parameters()
        if matrix.ndim == 2
    ]
    found += _gru("decoder", decoder.gru, batch.target_lengths_B)
    per_token = [("project", decoder.project.weight), ("output", decoder.out.weight)]
    found += [Layer(name, len(matrix), matrix.shape[1], [batch.tokens]) for name, matrix in per_token]
    return found


def writing_layers(model: VRAE, batch: Batch, texts: list[list[int]]) -> list[Layer]:
    """All matrices, and the rows that pass through them when texts are written in reply to the contexts of `batch`.

    Each distinct turn of a context is read once, end mark included; a text passes through the decoder and the output layer once
    for each of its tokens, the end mark being one.

    Args:
        model: of context_turns >= 1.
        batch: the contexts; its targets are not counted.
        texts: the tokens of each text, end mark included, of those that are written side by side.
    """
    config, decoder = model.config, model.decoder
    some_S = batch.context_lengths_B > 0
    lengths = batch.context_lengths_B.tolist()
    read = sorted({turn for turns, n in zip(batch.context_BK.tolist(), lengths, strict=True) for turn in turns[:n]})
    found = _gru("turn encoder", model.turn_encoder.gru, batch.turn_lengths_N[read])
    found += _gru("context encoder", model.context_encoder.gru, batch.context_lengths_B[some_S])
    started, sizes = [len(lengths) for lengths in texts], [sum(n > t for n in some) for some in texts for t in range(max(some))]
    one_row = [("prior", model.prior, [len(batch.target_B)]), ("start", decoder.start_state, started)]
    one_row += [("start", decoder.condition, started)] + ([("start", decoder.skip, started)] if config.skip_latent else [])
    found += [
        Layer(name, len(matrix), matrix.shape[1], rows)
        for name, module, rows in one_row
        for matrix in module.parameters()
        if matrix.ndim == 2
    ]
    per_token: list[tuple[str, Tensor]] = [
        (name, matrix) for name, matrix in decoder.gru.named_parameters() if matrix.ndim == 2
    ]
    per_token += [("project", decoder.project.weight), ("output", decoder.out.weight)]
    found += [Layer(f"decoder, {name}", len(matrix), matrix.shape[1], sizes) for name, matrix in per_token]
    return [layer._replace(learns=False) for layer in found]


def repeated(model: VRAE, batch: Batch) -> int:
    """Operations on turns that the batch reads as context alone: the batch that learns to say them reads them too."""
    if not model.config.context_turns:
        return 0
    again_N = torch.ones(len(batch.turns_NT), dtype=torch.bool)
    again_N[batch.target_B.cpu()] = False
    return sum(layer.operations for layer in _gru("", model.turn_encoder.gru, batch.turn_lengths_N[again_N]))


class Products:
    """The matrix products of a step and nothing else, on random numbers: the rate that the step can reach.

    Those of layers that do not learn are made as `vrae.model.products` makes them, step after step.

    Args:
        layers: of the step.
        dtype: of the numbers.
        device: where.
    """

    def __init__(self, layers: list[Layer], dtype: torch.dtype, device: torch.device) -> None:
        self.work: list[tuple[Tensor, Tensor, Tensor]] = []
        forward: list[list[tuple[Tensor, Tensor, Tensor]]] = []
        self.operations = sum(layer.operations for layer in layers)
        for layer in layers:
            P = sum(layer.rows)
            if not P * layer.inputs * layer.outputs:
                continue
            inputs, matrix = (torch.randn(rows, layer.inputs, device=device).to(dtype) for rows in (P, layer.outputs))
            if not layer.learns:
                forward.append([(rows, matrix, matrix[:, 0].clone()) for rows in torch.split(inputs, layer.rows)])
                continue
            outputs = torch.randn(P, layer.outputs, device=device).to(dtype)
            results = torch.empty_like(inputs), torch.empty_like(outputs)
            by_step = (torch.split(values, layer.rows) for values in (inputs, outputs, *results))
            for one, other, to_one, to_other in zip(*by_step, strict=True):
                self.work += [(one, matrix.t(), to_other), (other, matrix, to_one)]
            self.work.append((outputs.t(), inputs, torch.empty_like(matrix)))
        self.forward = [product for step in itertools.zip_longest(*forward) for product in step if product]

    @torch.inference_mode()
    def run(self) -> None:
        for left, right, result in self.work:
            torch.mm(left, right, out=result)
        for rows, matrix, bias in self.forward:
            linear(rows, matrix, bias)


def _gru(name: str, gru: nn.GRU, lengths_N: Tensor) -> list[Layer]:
    longest = int(lengths_N.max()) if len(lengths_N) else 0
    sizes = [int((lengths_N > t).sum()) for t in range(longest)]
    return [
        Layer(f"{name}, {'state' if key.startswith('weight_hh') else 'input'}", len(matrix), matrix.shape[1], rows)
        for key, matrix in gru.named_parameters()
        if matrix.ndim == 2
        for rows in (sizes if key.startswith("weight_hh") else [sum(sizes)],)
    ]
