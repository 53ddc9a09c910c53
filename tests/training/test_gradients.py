"""A step where memory runs out is made again in smaller parts, and comes to the same; `test_parallel.py` has the processes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import TINY

import vrae.training.gradients as gradients
from vrae.config import BatchConfig, ModelConfig, ObjectiveConfig, RunConfig, TrainConfig
from vrae.corpus.batches import TrainingBatches
from vrae.corpus.prepared import Corpus
from vrae.errors import UserError
from vrae.model.vrae import VRAE
from vrae.training.gradients import Gradients
from vrae.training.run_folder import fit_to_corpus
from vrae.training.trainer import train


def run_config(**options: Any) -> RunConfig:
    settings = dict(max_steps=12, validate_every=100, checkpoint_every=100, log_every=1, validation_turns=8, threads=1)
    return RunConfig(
        model=ModelConfig(**{**TINY, "vocab_size": 0}),
        batches=BatchConfig(tokens=160, max_turn_tokens=24),
        objective=ObjectiveConfig(kl_schedule="constant"),
        train=TrainConfig(**{**settings, "precision": "fp32", "device": "cpu", "learning_rate": 0.01, **options}),
    )


def parameters(run: Path) -> torch.Tensor:
    weights = safetensors.torch.load_file(
        run / "checkpoints" / (run / "checkpoints" / "last").read_text() / "model.safetensors"
    )
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Memory for so many target tokens at a time; what is tried goes to the list."""
    tried: list[int] = []

    def limit(tokens: int, error: Exception) -> list[int]:
        real = gradients.objective

        def objective(model: VRAE, words: Any, batch: Any, *arguments: Any) -> Any:
            tried.append(batch.tokens)
            done = real(model, words, batch, *arguments)
            if batch.tokens > tokens:
                raise error
            return done

        monkeypatch.setattr(gradients, "objective", objective)
        return tried

    return limit


def raised(call: Callable[[int], object]) -> Exception:
    """What the library says to 2^55 numbers."""
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        call(2**55)
    return caught.value


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    raised(torch.empty),
    raised(np.empty),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_step_is_made_again_in_halves_and_so_are_the_later_ones(
    corpus: Corpus, tmp_path: Path, scarce: Any, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    train(run_config(), corpus, tmp_path / "whole", quiet=True)
    tried = scarce(100, error)
    train(run_config(), corpus, tmp_path / "scarce", quiet=True)
    assert torch.allclose(parameters(tmp_path / "whole"), parameters(tmp_path / "scarce"), atol=1e-5)
    warning = r"vrae: warning: step \d+: out of memory; from now on a batch is worked in (\d) parts"
    warnings = re.findall(warning, capsys.readouterr().err)
    assert warnings == ["2", "4"][: len(warnings)]
    assert sum(tokens > 100 for tokens in tried) == len(warnings) >= 1


def test_what_does_not_fit_in_halves_either_is_said_with_the_setting_to_change(
    corpus: Corpus, tmp_path: Path, scarce: Any
) -> None:
    scarce(20, ERRORS[0])
    with pytest.raises(UserError, match=r"^out of memory at step 1 .*--train.accumulate 4, .*batches.tokens below 160"):
        train(run_config(), corpus, tmp_path, quiet=True)


def test_other_errors_pass(corpus: Corpus, tmp_path: Path, scarce: Any) -> None:
    scarce(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        train(run_config(), corpus, tmp_path, quiet=True)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_processes_add_up_their_gradients_once_a_step(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, accumulate: int, rank: int
) -> None:
    """However many parts they work; and each works its half."""
    messages: list[int] = []
    monkeypatch.setattr(gradients, "world", lambda: 2)
    monkeypatch.setattr(gradients, "rank", lambda: rank)
    monkeypatch.setattr(gradients, "add_up", lambda tensors: messages.append(sum(tensor.numel() for tensor in tensors)))
    config = fit_to_corpus(run_config(accumulate=accumulate), corpus)
    model = VRAE(config.model)
    batches = TrainingBatches(corpus["train"], config.batches, 0, 1, config.model.latent_size)
    step = Gradients(model, None, batches, config, torch.device("cpu"), "fp32")
    turns = [sum(len(offsets) for offsets in step.of(number, 1.0, pretraining=False)[1]) for number in range(3)]
    assert messages == 3 * [sum(parameter.numel() for parameter in model.parameters())]
    halves = [batches.parts(number, 2, [rank]) for number in range(3)]
    assert turns == [len(batch.target_B) for ((batch, _),) in halves]
