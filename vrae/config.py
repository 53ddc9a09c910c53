"""Every setting of every stage: frozen dataclasses, each field with its unit and range.

The command line (`--model.latent_size 32`), the YAML files in `configs/` and the `config.json` beside the weights are all
read into these classes, so there is one place to look a setting up. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import reprlib
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vrae.errors import ConfigError, meant

MAX_BEAMS = 64
SPLITS = ("train", "validation", "test")
Layout = Literal["auto", "turns", "chat", "pairs", "flat", "transcript", "utterances"]
Settings = TypeVar("Settings")
KlSchedule = Literal["constant", "linear", "logistic", "cosine", "cyclical"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class SourceConfig:
    """Where dialogues come from.

    Args:
        source: `chitchat`, a file (.txt .jsonl .csv .tsv .parquet), or the id of a data set on the Hub.
        layout: how a row holds a dialogue: `turns` (a list of strings), `chat` (a list of {role, content}), `pairs` (two
            columns), `flat` (a turn a row, grouped by `id_column`), `transcript` (one string, "Name: text" lines),
            `utterances` (a row is one turn with no dialogue around it). `auto` decides by the first row.
        text_column: column of the turns, the chat, the transcript or the utterance; empty: the usual names are tried.
        reply_column: with `pairs`, the column of the reply; empty: the usual names are tried.
        id_column: with `flat`, the column that names the dialogue; empty: the usual names are tried.
        revision: Hub data sets: branch, tag or commit; `refs/convert/parquet` reaches sets that are loading scripts.
        name: Hub data sets: the configuration of the data set.
        split: Hub data sets: read this split alone; empty: read all and keep the sets' own division.
        skip_bad_rows: count rows that cannot be read instead of stopping at the first.
    """

    source: str = "chitchat"
    layout: Layout = "auto"
    text_column: str = ""
    reply_column: str = ""
    id_column: str = ""
    revision: str = ""
    name: str = ""
    split: str = ""
    skip_bad_rows: bool = False


@dataclass(frozen=True)
class CleaningConfig:
    """What is changed in the text and what is dropped; every drop is counted in the manifest.

    Args:
        mask_personal: replace e-mail addresses, URLs, phone numbers and @handles by <email> <url> <phone> <user>.
        max_repeats: runs of one character (no digit) longer than this are cut to it, [0, 1000]; 0: never.
        lowercase: write all text in lower case.
        restore_apostrophes: dont -> don't, im -> i'm, and eight more whose reading is not in doubt.
        min_turns: drop dialogues with fewer turns.
        spam_messages: dialogues with at least this many messages are tested for repetition; 0: never.
        spam_distinct: such a dialogue is dropped when distinct messages / messages is below this share, 0 to 1.
        drop_duplicates: keep the first of several dialogues that are identical but for capitals.
        sentences: each message and sentence of a training turn of several is a dialogue of its own too: more and shorter
            examples, for an autoencoder (context_turns 0). The tokenizer is trained without them.
    """

    mask_personal: bool = True
    max_repeats: int = 3
    lowercase: bool = False
    restore_apostrophes: bool = False
    min_turns: int = 1
    spam_messages: int = 0
    spam_distinct: float = 0.7
    drop_duplicates: bool = True
    sentences: bool = False

    def __post_init__(self) -> None:
        _require(0 <= self.max_repeats <= 1000, f"max_repeats must be in [0, 1000]. Got {self.max_repeats}")
        _require(self.min_turns >= 1, f"min_turns must be 1 or more. Got {self.min_turns}")
        _require(self.spam_messages >= 0, f"spam_messages must be 0 or more. Got {self.spam_messages}")
        _require(0 <= self.spam_distinct <= 1, f"spam_distinct must be in [0, 1]. Got {self.spam_distinct}")


CHITCHAT_CLEANING = CleaningConfig(min_turns=2, spam_messages=15)


@dataclass(frozen=True)
class PrepareConfig:
    """Text to arrays.

    Args:
        source: where the dialogues come from.
        cleaning: what is changed and dropped.
        vocab_size: pieces of the tokenizer, specials and 256 byte pieces included.
        tokenizer: an existing SentencePiece model to use instead of training one.
        tokenizer_turns: train the tokenizer on at most this many turns, a uniform sample of the training split.
        validation_percent: percent of dialogues that go to validation, where the source has no split of its own.
        test_percent: percent of dialogues that go to test, likewise.
        num_proc: processes that encode text.
    """

    source: SourceConfig = field(default_factory=SourceConfig)
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    vocab_size: int = 6000
    tokenizer: str = ""
    tokenizer_turns: int = 1_000_000
    validation_percent: int = 5
    test_percent: int = 5
    num_proc: int = 1

    def __post_init__(self) -> None:
        _require(self.vocab_size >= 300, f"vocab_size must be 300 or more (256 of them are bytes). Got {self.vocab_size}")
        _require(self.vocab_size <= 65_536, f"vocab_size must be at most 65536. Got {self.vocab_size}")
        _require(self.tokenizer_turns >= 1, f"tokenizer_turns must be 1 or more. Got {self.tokenizer_turns}")
        _require(self.num_proc >= 1, f"num_proc must be 1 or more. Got {self.num_proc}")
        for name in ("validation_percent", "test_percent"):
            _require(0 <= getattr(self, name) <= 50, f"{name} must be in [0, 50]. Got {getattr(self, name)}")


@dataclass(frozen=True)
class ModelConfig:
    """The architecture: all that is needed to build the model that a file of weights belongs to.

    Args:
        vocab_size: pieces of the tokenizer; 0: taken from the corpus when training starts.
        context_turns: K, earlier turns that a turn is conditioned on. 0 a VRAE, 1 a responder, more a VHRED.
        latent_size: Z, dimensions of the latent. 0: the deterministic model of the same shape (RNN-LM, Seq2Seq, HRED).
        embedding_size: E, width of the token embeddings, of encoder, decoder and output layer.
        hidden_size: H, width of the decoder's state and of an encoded turn.
        context_size: C, width of the context state (context_turns >= 1).
        encoder_layers: layers of the turn encoder.
        decoder_layers: layers of the decoder.
        bidirectional: read a turn in both directions, each with hidden_size / 2.
        tied_output: the output layer reuses the token embeddings, through a projection from H to E.
        dropout: share of the embeddings, of what passes between layers, and of the decoder's outputs set to zero, [0, 1).
        speakers: tell the context encoder, for every turn, whether its speaker is the one about to speak.
        prior: p(z | c): `standard`, N(0, I) whatever the context; `gaussian`, learnt from it; `mixture`, a learnt mixture of
            Gaussians, of the context where there is one (Gu et al. 2019); `auto`: gaussian with a context, else standard.
        prior_components: Gaussians in the mixture.
        flow_steps: affine couplings that bend the Gaussian posterior (Rezende & Mohamed 2015; Dinh et al. 2017). 0: none.
        batch_norm_scale: hold each dimension of the posterior mean at this standard deviation over a batch, so that the rate
            cannot vanish (Zhu et al. 2020: 0.5 to 0.7). 0: off. Needs the standard prior.
        skip_latent: add z to the input of the output layer as well (Dieng et al. 2019).
    """

    vocab_size: int = 0
    context_turns: int = 0
    latent_size: int = 32
    embedding_size: int = 256
    hidden_size: int = 320
    context_size: int = 320
    encoder_layers: int = 1
    decoder_layers: int = 1
    bidirectional: bool = True
    tied_output: bool = True
    dropout: float = 0.2
    speakers: bool = False
    prior: Literal["auto", "standard", "gaussian", "mixture"] = "auto"
    prior_components: int = 5
    flow_steps: int = 0
    batch_norm_scale: float = 0.0
    skip_latent: bool = False

    @property
    def prior_of_context(self) -> str:
        """`prior` with `auto` decided."""
        return self.prior if self.prior != "auto" else "gaussian" if self.context_turns else "standard"

    def __post_init__(self) -> None:
        # The upper ends keep the config.json of a stranger from asking for all memory there is.
        ranges = {
            **dict.fromkeys(("vocab_size", "latent_size"), (0, 65_536)),
            **dict.fromkeys(("embedding_size", "hidden_size", "context_size"), (1, 65_536)),
            **dict.fromkeys(("encoder_layers", "decoder_layers"), (1, 32)),
            "context_turns": (0, 1000),
            "prior_components": (1, 1000),
            "flow_steps": (0, 64),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            _require(least <= value <= most, f"model.{name} must be in [{least}, {most}]. Got {value}")
        _require(0 <= self.dropout < 1, f"model.dropout must be in [0, 1). Got {self.dropout}")
        _require(
            not self.bidirectional or self.hidden_size % 2 == 0,
            f"model.hidden_size must be even with model.bidirectional. Got {self.hidden_size}",
        )
        _require(0 <= self.batch_norm_scale <= 100, f"model.batch_norm_scale must be in [0, 100]. Got {self.batch_norm_scale}")
        _require(
            self.context_turns > 0 or self.prior_of_context != "gaussian",
            "model.prior gaussian is learnt from a context: it needs model.context_turns of 1 or more",
        )
        _require(
            not self.batch_norm_scale or self.prior_of_context == "standard",
            "model.batch_norm_scale bounds the rate under the standard prior alone: set model.prior to standard",
        )
        _require(
            not self.flow_steps or self.latent_size != 1,
            "model.flow_steps changes one half of the dimensions by the other: it needs model.latent_size of 2 or more",
        )


@dataclass(frozen=True)
class BatchConfig:
    """How turns are put into batches.

    Args:
        tokens: target tokens per optimiser step, end marks included.
        max_turn_tokens: targets longer than this are left out (and counted); context turns keep their last so many.
        context_dropout: probability that a training example keeps only the last j of its context turns, j drawn evenly
            from 0 to context_turns - 1, [0, 1]. So short and empty contexts occur all over a dialogue, not at its start
            alone.
        utterance_dropout: probability that the vector of a context turn is replaced by zeros in training, [0, 1] (Park et al.
            2018).
        word_dropout: probability that a decoder input token is replaced by <unk> in training, [0, 1] (Bowman et al. 2016).
        segment_turns: with a context, consecutive turns of one dialogue that stay in one batch, to share encoded turns.
    """

    tokens: int = 2048
    max_turn_tokens: int = 48
    context_dropout: float = 0.0
    utterance_dropout: float = 0.0
    word_dropout: float = 0.0
    segment_turns: int = 8

    def __post_init__(self) -> None:
        for name in ("tokens", "max_turn_tokens", "segment_turns"):
            _require(getattr(self, name) >= 1, f"batches.{name} must be 1 or more. Got {getattr(self, name)}")
        for name in ("context_dropout", "utterance_dropout", "word_dropout"):
            _require(0 <= getattr(self, name) <= 1, f"batches.{name} must be in [0, 1]. Got {getattr(self, name)}")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The training loss. None of it touches a reported number.

    `loss = distortion + kl_weight * rate` per turn, with kl_weight = beta * schedule(step), or the controller's.

    Args:
        beta: weight of the rate once the schedule has ended (Higgins et al. 2017).
        kl_schedule: how the weight grows from 0 to beta: `constant` (at once), `linear`, `logistic`, `cosine`, `cyclical`.
        kl_warmup_steps: steps of that growth; with `cyclical`, steps of one whole cycle.
        kl_cycles: with `cyclical`, number of cycles (Fu et al. 2019); half of each is growth.
        free_bits: nats of the rate that cost nothing (Kingma et al. 2016; Li et al. 2019). 0: off.
        free_bits_per: what each has so many nats free: `dimension`, a latent dimension's mean over the batch; `value`, each
            dimension of each turn; `turn`, each turn's total; `batch`, the mean total of the batch.
        target_rate: hold the rate at this many nats per turn by steering the weight between 0 and beta (Shao et al. 2020).
            0: off, the schedule decides.
        bag_of_words: weight of a second loss, the turn's words from z and the context alone, without their order (Zhao et al.
            2017); summed over tokens. 0: off.
        importance_samples: posterior samples of the bound that is trained on, log 1/k sum_k w_k (Burda et al. 2016). 1: the
            ELBO.
        doubly_reparameterised: train the posterior with the gradient whose signal does not fade as importance_samples grows
            (Tucker et al. 2019).
        pretrain_steps: train a plain autoencoder (posterior mean, kl_weight 0) for so many steps, then draw the decoder anew;
            the schedule starts there (Li et al. 2019). 0: off.
        aggressive: until validation mutual information stops rising, update the inference network as long as the loss falls
            before each update of the decoder (He et al. 2019). Needs model.context_turns 0.
    """

    beta: float = 1.0
    kl_schedule: KlSchedule = "linear"
    kl_warmup_steps: int = 1000
    kl_cycles: int = 4
    free_bits: float = 0.0
    free_bits_per: Literal["dimension", "value", "turn", "batch"] = "dimension"
    target_rate: float = 0.0
    bag_of_words: float = 0.0
    importance_samples: int = 1
    doubly_reparameterised: bool = False
    pretrain_steps: int = 0
    aggressive: bool = False

    def __post_init__(self) -> None:
        for name in ("beta", "free_bits", "target_rate", "bag_of_words", "pretrain_steps"):
            _require(getattr(self, name) >= 0, f"objective.{name} must be 0 or more. Got {getattr(self, name)}")
        for name in ("kl_warmup_steps", "kl_cycles", "importance_samples"):
            _require(getattr(self, name) >= 1, f"objective.{name} must be 1 or more. Got {getattr(self, name)}")
        _require(
            not self.free_bits or not self.weighted_samples,
            "objective.free_bits has no meaning where the rate stands inside the log of a mean: set it to 0, or "
            "objective.importance_samples to 1 and objective.doubly_reparameterised to false",
        )

    @property
    def weighted_samples(self) -> bool:
        """Whether the bound is that of Burda et al. 2016, and the rate inside its logarithm."""
        return self.importance_samples > 1 or self.doubly_reparameterised


@dataclass(frozen=True)
class TrainConfig:
    """The optimiser, how long, and what is written when.

    Args:
        max_steps: optimiser steps; the learning-rate schedule ends here. 0: as many as max_minutes allow, judged by the
            pace so far.
        max_minutes: stop after this many minutes of training, across resumes; 0: no limit.
        optimizer: `muon` (Jordan et al. 2024) for the matrices between hidden layers, with AdamW for embeddings, output layer
            and biases; or `adamw` (Loshchilov & Hutter 2019) for all, which wants a tenth of the learning rate.
        learning_rate: the highest, reached after the warm-up.
        final_learning_rate: the last, as a share of the highest, [0, 1].
        warmup_steps: steps of linear warm-up; then a cosine to the final one.
        weight_decay: times the learning rate, the share that a step takes off matrices; with `muon`, those it steps.
        clip_norm: gradients are scaled down to this global norm; 0: never.
        accumulate: parts that a batch is worked in, to save memory. The gradient is the same but for the dropout masks, and
            for what is taken over a whole batch: free bits per dimension or batch, and batch normalisation, are then taken over
            a part.
        seed: of weights, batch order, dropout and latent noise.
        log_every: steps between two lines of metrics.jsonl.
        validate_every: steps between two validations, with samples.
        checkpoint_every: steps between two checkpoints.
        keep_last: checkpoints kept besides the best one.
        patience: stop after this many validations without a better one; 0: never.
        validation_turns: validation turns used while training; 0: all.
        precision: `auto` is bf16 where the GPU has it and fp32 elsewhere.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads; 0: as torch chooses.
        tensorboard: also write TensorBoard event files.
    """

    max_steps: int = 10_000
    max_minutes: float = 0.0
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 0.02
    final_learning_rate: float = 0.0
    warmup_steps: int = 100
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    accumulate: int = 1
    seed: int = 1
    log_every: int = 20
    validate_every: int = 500
    checkpoint_every: int = 500
    keep_last: int = 2
    patience: int = 0
    validation_turns: int = 2000
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    threads: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("accumulate", "log_every", "validate_every", "checkpoint_every", "keep_last"):
            _require(getattr(self, name) >= 1, f"train.{name} must be 1 or more. Got {getattr(self, name)}")
        for name in (
            "max_steps", "max_minutes", "warmup_steps", "weight_decay", "clip_norm", "patience", "validation_turns", "threads"
        ):  # fmt: skip
            _require(getattr(self, name) >= 0, f"train.{name} must be 0 or more. Got {getattr(self, name)}")
        _require(
            self.max_steps > 0 or self.max_minutes > 0,
            "train.max_steps and train.max_minutes are both 0: give one of them",
        )
        _require(self.learning_rate > 0, f"train.learning_rate must be above 0. Got {self.learning_rate}")
        _require(
            0 <= self.final_learning_rate <= 1,
            f"train.final_learning_rate must be in [0, 1]. Got {self.final_learning_rate}",
        )
        _require(0 <= self.seed < 2**31, f"train.seed must be in [0, 2**31). Got {self.seed}")


@dataclass(frozen=True)
class RunConfig:
    """One training run: what `configs/*.yaml` holds and what is saved beside the weights."""

    model: ModelConfig = field(default_factory=ModelConfig)
    batches: BatchConfig = field(default_factory=BatchConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        _require(
            not self.objective.aggressive or self.model.context_turns == 0,
            "objective.aggressive needs model.context_turns 0: with a context the turn encoder serves the decoder too, and the "
            "inference network cannot be trained alone",
        )
        _require(
            not self.objective.doubly_reparameterised or self.model.flow_steps == 0,
            "objective.doubly_reparameterised is derived for a posterior without a flow: set model.flow_steps to 0",
        )


@dataclass(frozen=True)
class DecodingConfig:
    """How text is drawn from p(x | z, c).

    Args:
        temperature: divides the logits before the draw; 0 is greedy.
        top_k: draw among the k most probable pieces only; 0: all.
        top_p: draw among the fewest pieces whose probability reaches p, (0, 1]; 1: all (Holtzman et al. 2020).
        min_p: draw among the pieces that are at least this share as probable as the most probable one, after temperature,
            [0, 1]; 0: all (Nguyen et al. 2024).
        repetition_penalty: the logit of a piece that the text already has is divided by it where positive and multiplied
            where negative, [1, 100] (Keskar et al. 2019, section 4.1). 1: off.
        no_repeat_ngram: no n pieces in a row occur twice in a text (Paulus et al. 2017, section 2.5). 0: off.
        beams: hypotheses of a beam search, which reads neither temperature nor top_k, top_p and min_p, [0, 64]. 0: no search.
        length_penalty: a beam search ranks texts by log_prob / length ** length_penalty, the length in pieces with the end
            mark, [0, 10]. 0: by log_prob; 1: by its mean over the pieces.
        max_tokens: longest text, in pieces; an end mark counts as one, [1, 128].
    """

    temperature: float = 0.5
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    beams: int = 0
    length_penalty: float = 0.0
    max_tokens: int = 48

    def __post_init__(self) -> None:
        _require(0 <= self.temperature <= 5, f"temperature must be in [0, 5]. Got {self.temperature}")
        _require(self.top_k >= 0, f"top_k must be 0 or more. Got {self.top_k}")
        _require(0 < self.top_p <= 1, f"top_p must be in (0, 1]. Got {self.top_p}")
        _require(0 <= self.min_p <= 1, f"min_p must be in [0, 1]. Got {self.min_p}")
        _require(1 <= self.repetition_penalty <= 100, f"repetition_penalty must be in [1, 100]. Got {self.repetition_penalty}")
        _require(self.no_repeat_ngram >= 0, f"no_repeat_ngram must be 0 or more. Got {self.no_repeat_ngram}")
        _require(0 <= self.beams <= MAX_BEAMS, f"beams must be in [0, {MAX_BEAMS}]. Got {self.beams}")
        _require(0 <= self.length_penalty <= 10, f"length_penalty must be in [0, 10]. Got {self.length_penalty}")
        _require(1 <= self.max_tokens <= 128, f"max_tokens must be in [1, 128]. Got {self.max_tokens}")


GREEDY = DecodingConfig(temperature=0.0, max_tokens=128)
SEARCH = DecodingConfig(temperature=0.0, beams=4, max_tokens=128)  # near the most probable text of a latent


@dataclass(frozen=True)
class ResponseConfig:
    """How several replies to one context are found and ordered.

    Args:
        latents: how their latents are drawn from p(z | context): `stratified`, one from each of equal parts of every dimension
            (McKay et al. 1979), by itself each is distributed as the prior; `independent`; `spread`, far from each other,
            chosen among 8 times as many.
        rank: what replies are ordered by: `likelihood`, log p(reply | z, context) at the reply's own z;
            `importance_weighted`, log p(reply | context), bounded with rank_samples draws (Burda et al. 2016); `mmi`, the same
            less mmi_weight times log p(reply) without the context, which is high for what could be said anywhere (Li et al.
            2016).
        mmi_weight: lambda of `mmi`, [0, 1].
        rank_samples: draws of z for each reply that is ranked by `importance_weighted` or `mmi`.
        candidates: for each reply asked for, so many are drawn and ranked.
        min_change: a reply of which a smaller share of words differs from an earlier one is left out, [0, 1]. 0: the same
            letters and digits alone.
    """

    latents: Literal["stratified", "independent", "spread"] = "stratified"
    rank: Literal["likelihood", "importance_weighted", "mmi"] = "likelihood"
    mmi_weight: float = 0.75
    rank_samples: int = 20
    candidates: int = 1
    min_change: float = 0.2

    def __post_init__(self) -> None:
        for name in ("latents", "rank"):
            choices = get_args(get_type_hints(type(self))[name])
            _require(getattr(self, name) in choices, f"{name} must be one of {', '.join(choices)}. Got {getattr(self, name)!r}")
        for name in ("mmi_weight", "min_change"):
            _require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1]. Got {getattr(self, name)}")
        _require(1 <= self.rank_samples <= 10_000, f"rank_samples must be in [1, 10000]. Got {self.rank_samples}")
        _require(1 <= self.candidates <= 100, f"candidates must be in [1, 100]. Got {self.candidates}")


# How replies are given, unless told otherwise: by likelihood, what is short and fits anywhere would come first. Weight and
# temperature were chosen by reading replies to validation contexts: warmer ones, and those that a higher weight prefers, are
# oftener broken. It draws four times as many and scores each with rank_samples draws (with 20 replies are no nearer to what was
# really said): DecodingConfig() and ResponseConfig() are a plain draw of each reply, in a fraction of the time.
TALK = (
    DecodingConfig(temperature=0.3, no_repeat_ngram=3),
    ResponseConfig(rank="mmi", rank_samples=5, candidates=4, min_change=0.5),
)


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured, and on how much of it.

    Args:
        split: train, validation or test.
        k: draws of z for each turn, and importance samples. 0: one draw, and no importance-weighted bound.
        max_turns: measure an even sample of so many turns; 0: all.
        max_turn_tokens: longest turn; 0: as in training.
        samples: turns drawn from the prior, and reconstructions looked at. 0: neither.
        paths: interpolations between turns of 2 to 8 tokens. 0: none.
        contexts: contexts that are replied to, where the model reads one. 0: none.
        replies: replies to each context.
        judge: a run of latent_size 0 and context_turns 0 on the same corpus, that reads samples and paths. Empty: none.
        reverse: train a language model on the samples too, and read real turns with it (some minutes).
        vectors: word vectors (GloVe or word2vec text) for the embedding scores of replies. Empty: none.
        out: folder for report.json, report.md and pictures. Empty: none.
        seed: of everything that is drawn.
    """

    split: str = "validation"
    k: int = 10
    max_turns: int = 0
    max_turn_tokens: int = 0
    samples: int = 1000
    paths: int = 100
    contexts: int = 200
    replies: int = 5
    judge: str = ""
    reverse: bool = False
    vectors: str = ""
    out: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.split in SPLITS, f"--split must be one of {', '.join(SPLITS)}. Got {self.split!r}")
        for name in ("k", "max_turns", "max_turn_tokens", "samples", "paths", "contexts"):
            _require(getattr(self, name) >= 0, f"--{name} must be 0 or more. Got {getattr(self, name)}")
        _require(self.samples != 1, "--samples must be 0, or 2 or more: one text cannot be compared with others. Got 1")
        _require(1 <= self.replies <= 256, f"--replies must be in [1, 256]. Got {self.replies}")
        _require(0 <= self.seed < 2**63, f"--seed must be in [0, 2**63). Got {self.seed}")


def shown(value: object, most: int = 80) -> str:
    """A value out of a file, for a message: printable, on one line, at most `most` characters; text without quotes.

    What a stranger wrote may be megabytes long, a thousand levels deep, half of a character, or commands to a terminal.
    """
    text = value if isinstance(value, str) else reprlib.repr(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])[:most]


def from_dict(cls: type[Any], values: object, where: str) -> Any:
    """Builds config class `cls` from JSON values. Refuses unknown keys and wrong values, naming them and `where`."""
    _require(isinstance(values, dict), f"{where}: expected an object for {cls.__name__}. Got {type(values).__name__}")
    assert isinstance(values, dict)
    known = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        hint = meant(unknown[0], known)
        raise ConfigError(f"{where}: unknown settings {shown(', '.join(unknown), 200)}.{hint} Known: {', '.join(known)}")
    default, hints = cls(), get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        standard = getattr(default, name)
        if dataclasses.is_dataclass(standard):
            arguments[name] = from_dict(type(standard), value, f"{where}: {name}")
            continue
        numeric = isinstance(standard, float) and type(value) is int and abs(value) < 2**53
        _require(
            type(value) is type(standard) or numeric,
            f"{where}: {name} must be {type(standard).__name__}. Got {reprlib.repr(value)}",
        )
        choices = get_args(hints[name]) if get_origin(hints[name]) is Literal else (value,)
        _require(value in choices, f"{where}: {name} must be one of {', '.join(map(str, choices))}. Got {reprlib.repr(value)}")
        arguments[name] = float(value) if numeric else value
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def changed(settings: Settings, where: str, **values: object) -> Settings:
    """The settings with some values of a stranger's in place of theirs. Refuses as `from_dict` does."""
    result: Settings = from_dict(type(settings), {**vars(settings), **values}, where)
    return result
