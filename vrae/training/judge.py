"""Language models that judge text: one trained on real turns, and its mirror, one trained on a model's samples.

Both are the model itself without latent and context (a GRU over tokens whose log p(x) is exact), fitted by the ordinary
trainer. The first reads samples: forward perplexity. The second reads real turns: reverse perplexity, which is high when the
samples lack something that real text has (both: Zhao et al. 2018, adversarially regularized autoencoders).
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vrae.config import BatchConfig, CleaningConfig, ModelConfig, PrepareConfig, RunConfig, SourceConfig, TrainConfig
from vrae.corpus.prepared import Corpus, prepare
from vrae.corpus.tokenizer import Tokenizer
from vrae.errors import ConfigError, DataError
from vrae.evaluation.quality import Perplexity, perplexity
from vrae.generation.pipeline import Pipeline
from vrae.training.trainer import train

# fp32, so that a judge does not depend on what the hardware multiplies in; the optimiser is that of the stored figures
JUDGE = RunConfig(
    model=ModelConfig(latent_size=0, context_turns=0, embedding_size=256, hidden_size=384),
    batches=BatchConfig(tokens=1536, max_turn_tokens=32),
    train=TrainConfig(
        max_steps=3000,
        optimizer="adamw",
        learning_rate=0.002,
        final_learning_rate=0.05,
        warmup_steps=100,
        validate_every=250,
        checkpoint_every=250,
        precision="fp32",
    ),
)
MIRROR = dataclasses.replace(
    JUDGE, train=dataclasses.replace(JUDGE.train, max_steps=1000, validate_every=50, checkpoint_every=1000)
)
_VALIDATION_EVERY = 20  # of the samples, one in so many tells when the mirror is at its best
_AS_IT_IS = CleaningConfig(mask_personal=False, max_repeats=0, drop_duplicates=False)


def train_language_model(corpus: Corpus, run: str | Path, config: RunConfig = JUDGE, *, quiet: bool = True) -> Pipeline:
    """A recurrent language model of the turns of `corpus`, trained into the folder `run`; of its checkpoints, the best.

    Raises:
        ConfigError: `config` is of a model with a latent or a context.
        UserError: as `train`.
    """
    model = config.model
    if model.latent_size or model.context_turns:
        raise ConfigError(
            "a language model has model.latent_size 0 and model.context_turns 0. "
            f"Got {model.latent_size} and {model.context_turns}"
        )
    train(config, corpus, run, quiet=quiet)
    return Pipeline.load(Path(run))


class Mirror(NamedTuple):
    """A language model of samples."""

    model: Pipeline  # of the samples that have text
    empty: float  # share of those that have none


def train_on_samples(
    samples: Sequence[str], tokenizer: Tokenizer, folder: str | Path, config: RunConfig = MIRROR, *, quiet: bool = True
) -> Mirror:
    """A language model of `samples`, each a turn of its own, trained in `folder` for the steps that `config` says.

    Nothing is cleaned away but control characters, duplicates count as often as they occur, and no sample is too long.
    A corpus holds no empty turns, so the model learns from the others alone and the share of empty ones is kept beside it.
    Every 20th sample is held out: of all checkpoints, the one that predicts those best is taken.

    Args:
        samples: 20 or more that have text.
        tokenizer: that of the model they come from.
        folder: for the prepared samples and the run; new or empty.
        config: model, batches and optimiser.

    Raises:
        DataError: too few samples with text.
    """
    texts = [text for text in samples if text.split()]
    if len(texts) < _VALIDATION_EVERY:
        raise DataError(
            f"reverse perplexity needs {_VALIDATION_EVERY} samples with text, and should have thousands. "
            f"Got {len(texts)} with text of {len(samples)}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    with open(folder / "samples.jsonl", "w", encoding="utf-8") as file:
        for i, text in enumerate(texts, 1):
            split = "train" if i % _VALIDATION_EVERY else "validation"
            file.write(json.dumps({"text": text, "split": split}) + "\n")
    source = SourceConfig(str(folder / "samples.jsonl"), layout="utterances", text_column="text")
    prepared = PrepareConfig(source, _AS_IT_IS, tokenizer=str(folder / "tokenizer.model"))
    corpus = prepare(prepared, folder / "corpus", quiet=quiet)
    longest = max(counts["longest_turn"] for counts in corpus.manifest["splits"].values())
    batches = dataclasses.replace(
        config.batches, max_turn_tokens=longest, tokens=max(config.batches.tokens, longest + 1), segment_turns=1
    )
    model = train_language_model(corpus, folder / "run", dataclasses.replace(config, batches=batches), quiet=quiet)
    return Mirror(model, 1 - len(texts) / len(samples))


def reverse_perplexity(
    samples: Sequence[str], real: Iterable[str], tokenizer: Tokenizer, config: RunConfig = MIRROR, *, quiet: bool = True
) -> Perplexity:
    """The perplexity of real turns under a language model of `samples`.

    It falls with the number of samples, and depends on the steps and the size of that model: figures are comparable where
    these are the same. The yardstick beside it is the same with as many real turns in place of the samples. A few thousand
    samples tell little: what they lack is then less than what a model cannot learn from so few, and smooth samples may even
    do better than real turns. Draw tens of thousands.

    Raises:
        DataError: too few samples with text.
    """
    with tempfile.TemporaryDirectory(prefix="vrae-mirror-") as folder:
        mirror = train_on_samples(samples, tokenizer, folder, config, quiet=quiet)
        return perplexity(mirror.model, real, empty=mirror.empty)
