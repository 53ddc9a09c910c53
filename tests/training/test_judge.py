"""Language models as judges: of samples whose distribution is known, so that the perplexity to come near is known too."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from vrae.config import BatchConfig, ModelConfig, RunConfig, TrainConfig
from vrae.corpus.prepared import Corpus
from vrae.errors import ConfigError, DataError, UserError
from vrae.evaluation.quality import perplexity
from vrae.training.judge import JUDGE, MIRROR, reverse_perplexity, train_language_model, train_on_samples
from vrae.training.monitor import read_records

SMALL = RunConfig(
    model=ModelConfig(latent_size=0, embedding_size=8, hidden_size=16, dropout=0.0),
    batches=BatchConfig(tokens=128, max_turn_tokens=20),
    train=TrainConfig(
        max_steps=100,
        learning_rate=0.06,
        warmup_steps=5,
        weight_decay=0.0,
        validate_every=50,
        checkpoint_every=50,
        precision="fp32",
        device="cpu",
    ),
)
DEFAULTS = [JUDGE, MIRROR]


def repeated(*texts: str) -> list[str]:
    """600 samples or so. With texts whose number has no factor in common with 20, those held out have the same shares."""
    return [*texts] * (600 // len(texts))


class TestReversePerplexity:
    def test_is_that_of_the_samples_shares(self, corpus: Corpus) -> None:
        # "yes" and "no" are one token each, and each ends there: p("yes") = 2/3, and its perplexity is (2/3) ** (-1/2) = 1.22.
        # Were duplicates dropped, it would be (1/2) ** (-1/2) = 1.41.
        samples = repeated("yes", "yes", "no")
        found = reverse_perplexity(samples, ["yes", "yes"], corpus.tokenizer, SMALL)
        assert found.value == pytest.approx(1.5**0.5, rel=0.01)
        assert (found.texts, found.tokens) == (2, 4)

    def test_counts_empty_samples_against_the_text(self, corpus: Corpus) -> None:
        samples = repeated("yes", "", "yes", "", "no")
        found = reverse_perplexity(samples, ["yes", "no"], corpus.tokenizer, SMALL)
        assert found.value == pytest.approx((0.4 * 0.2) ** -0.25, rel=0.01)

    def test_is_higher_for_samples_that_lack_something(self, corpus: Corpus) -> None:
        real = repeated("yes", "no", "see you", "yes", "maybe later", "no", "see you")
        same, poor = (reverse_perplexity(samples, real, corpus.tokenizer, SMALL).value for samples in (real, ["yes"] * 600))
        assert poor > 2 * same

    def test_is_the_same_again(self, corpus: Corpus) -> None:
        config = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, max_steps=10))
        first, second = (reverse_perplexity(["yes"] * 50, ["yes no"], corpus.tokenizer, config) for _ in range(2))
        assert first == second


class TestTraining:
    def test_on_samples_changes_and_leaves_out_none(self, corpus: Corpus, tmp_path: Path) -> None:
        long = "yes " * 40 + "no"
        samples = ["mail me@here.org", "sooooooo", "call 555-123-4567", long, "yes", "yes", "", " "] * 5
        config = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, max_steps=2))
        mirror = train_on_samples(samples, corpus.tokenizer, tmp_path / "mirror", config)
        prepared = Corpus(tmp_path / "mirror" / "corpus")
        texts = [
            prepared.tokenizer.decode(split.turn(i)) for split in prepared.splits.values() for i in range(len(split.turns) - 1)
        ]
        assert sorted(texts) == sorted(text for text in samples if text.strip())
        assert len(prepared["validation"].turns) - 1 == 1  # the 20th of 30
        assert prepared.tokenizer.sha256 == mirror.model.tokenizer.sha256 == corpus.tokenizer.sha256
        assert mirror.empty == pytest.approx(0.25)
        run = json.loads((tmp_path / "mirror" / "run" / "run.json").read_bytes())
        assert run["config"]["batches"]["max_turn_tokens"] == len(corpus.tokenizer.encode([long])[0]) > 20

    def test_on_samples_wants_some_with_text(self, corpus: Corpus, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"needs 20 samples with text, .*\. Got 19 with text of 119"):
            train_on_samples(["yes"] * 19 + [""] * 100, corpus.tokenizer, tmp_path, SMALL)

    def test_on_a_corpus_gives_the_best_checkpoint(self, corpus: Corpus, tmp_path: Path) -> None:
        judge = train_language_model(corpus, tmp_path / "run", SMALL)
        best = min(
            (record for record in read_records(tmp_path / "run" / "metrics.jsonl") if record["split"] == "validation"),
            key=lambda record: -record["elbo"],
        )
        assert judge.info["step"] == best["step"]
        texts = [
            corpus.tokenizer.decode(turn)
            for turn in (corpus["validation"].turn(i) for i in range(len(corpus["validation"].turns) - 1))
            if len(turn) <= 20
        ]
        assert math.log2(perplexity(judge, texts).value) == pytest.approx(best["bits_per_token"], rel=1e-5)

    def test_wants_a_language_model_and_a_folder_of_its_own(self, corpus: Corpus, tmp_path: Path) -> None:
        for model in (ModelConfig(), ModelConfig(latent_size=0, context_turns=1)):
            with pytest.raises(ConfigError, match=r"a language model has model.latent_size 0 and model.context_turns 0"):
                train_language_model(corpus, tmp_path / "run", dataclasses.replace(SMALL, model=model))
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "something").touch()
        with pytest.raises(UserError, match="not empty"):
            train_language_model(corpus, tmp_path / "run", SMALL)


@pytest.mark.parametrize("config", DEFAULTS)
def test_the_defaults_are_language_models_of_stated_length(config: RunConfig) -> None:
    assert (config.model.latent_size, config.model.context_turns, config.train.precision) == (0, 0, "fp32")
    assert config.train.max_steps > 0
    assert config.train.max_minutes == 0
