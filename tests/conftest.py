"""Shared by all tests: one thread, no network, a tiny corpus, tiny models, and a GRU written out by hand."""

from __future__ import annotations

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: the processes that tests start would
    signal.signal(signal.SIGINT, signal.default_int_handler)  # be deaf to Ctrl-C too
os.environ["HF_HUB_OFFLINE"] = "1"

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vrae.config import CleaningConfig, ModelConfig, PrepareConfig, SourceConfig
from vrae.corpus.batches import Window
from vrae.corpus.prepared import Corpus, prepare
from vrae.model.vrae import VRAE

torch.set_num_threads(1)

VOCAB = 400
WORDS = """hello how are you today i am fine thanks what do like to eat pizza is great weather sunny tomorrow we should
meet at the park see later yes no maybe do not know really love this song naïve café 😀 🎉""".split()

# Widths differ from each other, so that a matrix of the wrong shape or a transposed one cannot go unnoticed.
TINY = dict(vocab_size=23, embedding_size=5, hidden_size=6, context_size=7, latent_size=4, dropout=0.0)


def tiny_model(seed: int = 0, **overrides: Any) -> VRAE:
    """A model of a few hundred float64 parameters in eval mode, none of them zero; the same one for the same arguments."""
    model = VRAE(ModelConfig(**{**TINY, **overrides})).double().eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model


def random_windows(count: int, context_turns: int, vocab_size: int = TINY["vocab_size"], seed: int = 0) -> list[Window]:
    """Windows of 0 to `context_turns` context turns, all turns of 0 to 7 tokens; the first windows have no context."""
    draw = np.random.default_rng(seed)
    windows = []
    for i in range(count):
        turns = [draw.integers(4, vocab_size, draw.integers(8)) for _ in range(1 + i % (context_turns + 1))]
        windows.append(Window(turns[:-1], turns[-1], [int(bit) for bit in draw.integers(2, size=len(turns) - 1)]))
    return windows


def gru_by_hand(gru: nn.GRU, inputs_TX: Tensor, state_H: Tensor, suffix: str = "l0") -> Tensor:
    """[T, H], the states of one layer and direction of `gru` by its equations, one step after the other."""
    w_in, w_state, b_in, b_state = (getattr(gru, f"{n}_{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    states = []
    for input_X in inputs_TX:
        reset_in, update_in, new_in = (w_in @ input_X + b_in).chunk(3)
        reset_state, update_state, new_state = (w_state @ state_H + b_state).chunk(3)
        update = torch.sigmoid(update_in + update_state)
        new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_state) * new_state)
        state_H = (1 - update) * new + update * state_H
        states.append(state_H)
    return torch.stack(states) if states else state_H.new_zeros(0, len(state_H))


def make_dialogues(count: int = 60, seed: int = 0) -> list[list[str]]:
    """Dialogues of 1 to 9 turns, of 1 to 14 words each."""
    draw = random.Random(seed)
    return [[" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(draw.randint(1, 9))] for _ in range(count)]


def write_dialogues(path: Path, dialogues: list[list[str]]) -> Path:
    """A .txt with a turn a line and a blank line between dialogues."""
    path.write_text("\n\n".join("\n".join(turns) for turns in dialogues) + "\n", encoding="utf-8")
    return path


def prepare_config(source: Path, **overrides: Any) -> PrepareConfig:
    """Small, with a fifth of the dialogues in validation and a fifth in test."""
    settings: dict[str, Any] = dict(
        source=SourceConfig(str(source), layout="turns"),
        cleaning=CleaningConfig(max_repeats=0),
        vocab_size=VOCAB,
        validation_percent=20,
        test_percent=20,
    )
    return PrepareConfig(**{**settings, **overrides})


@pytest.fixture(scope="session")
def dialogues() -> list[list[str]]:
    return make_dialogues()


@pytest.fixture(scope="session")
def source(dialogues: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dialogues as a .txt file. Not to be written to."""
    return write_dialogues(tmp_path_factory.mktemp("source") / "talk.txt", dialogues)


@pytest.fixture(scope="session")
def corpus(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The dialogues prepared. Not to be written to."""
    return prepare(prepare_config(source), tmp_path_factory.mktemp("corpus") / "corpus", quiet=True)
