"""What is compared is the same work; that the figures are high is for `benchmarks/training_step.py` to say."""

from __future__ import annotations

import pytest
from conftest import TINY

from vrae.apps.bench import Step, tokens_ratio, train_of_matmul
from vrae.config import BatchConfig, ModelConfig, RunConfig, TrainConfig
from vrae.corpus.prepared import Corpus


def step(corpus: Corpus, context_turns: int = 0) -> Step:
    model = ModelConfig(**{**TINY, "vocab_size": 0, "context_turns": context_turns})
    batches = BatchConfig(tokens=160, max_turn_tokens=24, segment_turns=4)
    return Step(RunConfig(model=model, batches=batches, train=TrainConfig(device="cpu", precision="fp32")), corpus)


def test_steps_are_set_against_their_own_products(corpus: Corpus) -> None:
    rates = train_of_matmul(step(corpus), minutes=0)
    assert 0 < rates.train_of_matmul < 1.5
    assert rates.train_of_matmul == pytest.approx(rates.train / rates.matmul, rel=1)
    assert 0 <= rates.padding < 0.2  # with widths like these the gradients of biases weigh something
    assert rates.tokens_per_second > 0


def test_a_step_learns(corpus: Corpus) -> None:
    one = step(corpus)
    before = [parameter.detach().clone() for parameter in one.model.parameters()]
    one.run(0)
    assert not all(old.equal(new) for old, new in zip(before, one.model.parameters(), strict=True))


def test_what_repeats_turns_of_other_batches_counts_as_waste(corpus: Corpus) -> None:
    assert step(corpus, context_turns=2).wasted(0) > step(corpus).wasted(0)


def test_the_same_steps_have_the_same_rate(corpus: Corpus) -> None:
    assert 0.2 < tokens_ratio(step(corpus), step(corpus), minutes=0) < 5
