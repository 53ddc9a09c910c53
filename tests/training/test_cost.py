"""The count of operations against torch's own, and against a count by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import random_windows, tiny_model
from torch.utils.flop_counter import FlopCounterMode

import vrae.model.recurrence
from vrae.config import DecodingConfig, ObjectiveConfig
from vrae.corpus.batches import Window, collate
from vrae.corpus.tokenizer import EOS
from vrae.generation.decoding import decode
from vrae.training.cost import Products, layers, repeated, writing_layers
from vrae.training.objective import objective

MODELS: list[dict[str, Any]] = [
    {},
    {"latent_size": 0},
    {"context_turns": 3},
    {"context_turns": 3, "latent_size": 0},
    {"context_turns": 2, "encoder_layers": 2, "decoder_layers": 2, "bidirectional": False, "skip_latent": True},
    {"context_turns": 2, "prior": "mixture", "tied_output": False, "speakers": True},
]


@pytest.fixture(autouse=True)
def no_row_beyond_those_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that a step's products are filled up with are no useful work, and not counted as such."""
    monkeypatch.setattr(vrae.model.recurrence, "_ROWS", 1)


@pytest.mark.parametrize("overrides", MODELS, ids=str)
def test_it_is_what_torch_counts_in_a_step(overrides: dict[str, Any]) -> None:
    model = tiny_model(**overrides)
    batch = collate(random_windows(9, model.config.context_turns), model.config.context_turns)
    noise_1BZ = torch.zeros(1, 9, model.config.latent_size, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        loss, *_ = objective(model, None, batch, noise_1BZ, 1.0, ObjectiveConfig())
        loss.backward()  # type: ignore[no-untyped-call]
    found = layers(model, batch)
    bias = 2 * 2 * batch.tokens * model.config.vocab_size  # its gradient is made as a product of two rows
    assert sum(layer.operations for layer in found) + bias == counter.get_total_flops()
    products = Products(found, torch.float64, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        products.run()
    assert products.operations == counter.get_total_flops()


def test_by_hand() -> None:
    model = tiny_model(latent_size=0)  # E 5, H 6, V 23: a language model
    windows = [Window([], torch.arange(4, 4 + n).numpy(), []) for n in (2, 0)]  # 3 tokens and 1, end marks included
    found = {layer.name: layer for layer in layers(model, collate(windows, 0))}
    assert {name: layer.rows for name, layer in found.items() if layer.operations} == {
        "decoder, input": [4],
        "decoder, state": [2, 1, 1],
        "project": [4],
        "output": [4],
    }
    assert sum(layer.operations for layer in found.values()) == 6 * 4 * (18 * 5 + 18 * 6 + 6 * 5 + 5 * 23)


def test_turns_read_as_context_alone_are_repeated() -> None:
    model = tiny_model(context_turns=1)
    one, two = (torch.arange(4, 4 + n).numpy() for n in (2, 6))
    batch = collate([Window([one], two, [0])], 1)
    all_of_it = sum(layer.operations for layer in layers(model, batch) if layer.name.startswith("turn encoder"))
    assert repeated(model, batch) == all_of_it * 3 // (3 + 7)
    assert repeated(model, batch._replace(target_B=torch.tensor([0, 1]))) == 0
    assert repeated(tiny_model(), collate([Window([], two, [])], 0)) == 0


@pytest.mark.parametrize("overrides", [some for some in MODELS if some.get("context_turns")], ids=str)
def test_writing_is_what_torch_counts(overrides: dict[str, Any]) -> None:
    model = tiny_model(**overrides)
    with torch.no_grad():
        model.decoder.out.bias[EOS] = 2.0
    K, B, T = model.config.context_turns, 9, 12
    batch = collate([window._replace(target=window.target[:0]) for window in random_windows(B, K)], K)
    draw = torch.Generator().manual_seed(0)
    z_BZ, noise_BT = torch.randn(B, model.config.latent_size, generator=draw).double(), torch.rand(B, T, generator=draw)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        _, context_BC = model.condition(batch)
        state = model.decoder.start(z_BZ, context_BC)
        texts = decode(model.decoder, state, noise_BT, DecodingConfig(1.0, max_tokens=T))
    lengths = [len(text.ids) + text.finished for text in texts]
    assert len(set(lengths)) > 2
    found = writing_layers(model, batch, [lengths])
    reading = [layer for layer in layers(model, batch) if layer.name.startswith("turn encoder")]
    empty_targets = sum(2 * layer.outputs * layer.inputs * B for layer in reading)  # their end marks
    assert sum(layer.operations for layer in found) + empty_targets == counter.get_total_flops()
    products = Products(found, torch.float64, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        products.run()
    assert products.operations == counter.get_total_flops()


def test_writing_by_hand() -> None:
    model = tiny_model(context_turns=1)  # E 5, H 6, C 7, Z 4, V 23
    batch = collate([Window([torch.arange(4, 4 + n).numpy()], torch.arange(0).numpy(), [0]) for n in (2, 0)], 1)
    found = {layer.name: layer for layer in writing_layers(model, batch, [[3, 1], [1]])}
    assert found["turn encoder, state"].rows == [2, 1, 1]
    assert found["context encoder, input"].rows == [2]
    assert found["start"].rows == [2, 1]
    assert found["decoder, output"].rows == [2, 1, 1, 1]
    assert found["decoder, output"].operations == 2 * 5 * 23 * 5
