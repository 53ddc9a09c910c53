"""`vrae bench`: how fast training and writing are against what the machine can multiply, and against GPT-2.

What is compared runs in turn in one process, so that a busy machine disturbs both sides; the figures are ratios. What each of
them means: docs/performance.md.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vrae.apps.gpt2 import GPT2, MemoryRatios, memory_ratios
from vrae.config import (
    CHITCHAT_CLEANING,
    BatchConfig,
    DecodingConfig,
    ModelConfig,
    PrepareConfig,
    ResponseConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)
from vrae.corpus.batches import TrainingBatches
from vrae.corpus.prepared import Corpus, prepare
from vrae.corpus.tokenizer import EOS
from vrae.errors import UserError
from vrae.generation.decoding import ROWS, Decoded
from vrae.generation.pipeline import Pipeline, load
from vrae.model.vrae import VRAE
from vrae.training.cost import Products, layers, repeated, writing_layers
from vrae.training.gradients import Gradients
from vrae.training.hardware import keep_memory, pick_device, pick_precision
from vrae.training.optimizer import make_optimizer
from vrae.training.run_folder import fit_to_corpus

_HIDDEN = 256  # of the model whose training is timed
_TOKENS = 24  # of each reply that fresh weights write: about as many as the longest of ten of a trained model
_REPLIES = 10
_CONTEXTS = 64  # side by side, as many as `vrae respond` takes


def bench(data: str = "", model: str = "", device: str = "auto", seconds: float = 12.0) -> dict[str, Any]:
    """All figures, in under two minutes on two cores.

    Args:
        data: a prepared corpus; empty: chitchat is prepared in a temporary folder.
        model: whose replies are timed, of context_turns >= 1; empty: fresh weights in the sizes of chitchat-vhred.
        device: where to train and write.
        seconds: of each figure; the time of two of its repeats at least.

    Raises:
        UserError: no such corpus or model.
    """
    kind = pick_device(device)
    with _corpus(data) as corpus:
        train = TrainConfig(device=device)

        def step(context_turns: int) -> Step:
            sizes = ModelConfig(hidden_size=_HIDDEN, context_size=_HIDDEN, context_turns=context_turns)
            return Step(RunConfig(model=sizes, batches=BatchConfig(tokens=8192), train=train), corpus)

        writer = Writer.trained(load(model, str(kind))) if model else Writer.fresh(corpus, kind)
        note("training against its matrix products")
        plain = step(0)
        rates = train_of_matmul(plain, seconds / 60)
        note("five context turns against one")
        k5_of_k1 = tokens_ratio(step(5), step(1), 2 * seconds / 60)
        contexts = [[text] for text in _turns(corpus, _CONTEXTS)]
        note("replies to one context")
        respond_ms = writer.respond_ms(contexts[0], seconds / 2)
        note(f"replies to {_CONTEXTS} contexts against their matrix products")
        bulk = writer.bulk_of_matmul(contexts, seconds)
        time_ratio: float | None = None
        memory: MemoryRatios | None = None
        try:
            note("the same replies from a model of the size of GPT-2")
            time_ratio = gpt2_time_ratio(Writer.fresh(corpus, kind), contexts[0], GPT2(kind), seconds)
            memory = memory_ratios(writer.model.config, _TOKENS, _REPLIES) if kind.type == "cpu" else None
        except UserError as error:
            note(str(error))
        return {
            "train_of_matmul": rates.train_of_matmul,
            "padding": rates.padding,
            "k5_of_k1": k5_of_k1,
            "respond_ms": respond_ms,
            "bulk_of_matmul": bulk,
            "gpt2_time_ratio": time_ratio,
            "gpt2_memory_ratio": memory and memory.own,
            "gpt2_process_ratio": memory and memory.whole,
            "device": str(kind),
            "precision": plain.precision,
            "threads": torch.get_num_threads(),
        }


class Step:
    """A training step of a fresh model: gradient, clipping and update on the real batches of a corpus.

    Args:
        config: of the run.
        corpus: its training split.
    """

    def __init__(self, config: RunConfig, corpus: Corpus) -> None:
        config = fit_to_corpus(config, corpus)
        self.device = pick_device(config.train.device)
        self.precision = pick_precision(config.train.precision, self.device)
        if self.device.type == "cpu":
            keep_memory()
        torch.manual_seed(config.train.seed)
        self.model = VRAE(config.model).to(self.device).train()
        self.clip_norm = config.train.clip_norm
        self.optimizer = make_optimizer(self.model, None, config.train, self.precision)
        noise_size = config.objective.importance_samples * config.model.latent_size
        self.batches = TrainingBatches(
            corpus["train"], config.batches, config.model.context_turns, config.train.seed, noise_size
        )
        self.gradients = Gradients(self.model, None, self.batches, config, self.device, self.precision)

    def run(self, step: int) -> None:
        self.gradients.of(step, 1.0, pretraining=False)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()

    def products(self, step: int) -> Products:
        """The products that `run` makes, of the real tokens."""
        [(batch, _)] = self.batches.parts(step)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return Products(layers(self.model, batch), dtype, self.device)

    def wasted(self, step: int) -> float:
        """Share of the operations of `run`, as torch counts them, that is padding or repetition, [0, 1]."""
        [(batch, _)] = self.batches.parts(step)
        with FlopCounterMode(display=False) as counter:
            self.gradients.of(step, 1.0, pretraining=False)
        useful = sum(layer.operations for layer in layers(self.model, batch)) - repeated(self.model, batch)
        return 1 - useful / int(counter.get_total_flops())


class Rates(NamedTuple):
    """Useful operations of training steps against the products alone, and their share of all that was done."""

    train_of_matmul: float  # median over the steps
    train: float  # operations per second
    matmul: float
    padding: float
    tokens_per_second: float


def train_of_matmul(step: Step, minutes: float, steps: int = 1000) -> Rates:
    """Steps and their products in turn, for so many minutes and at least three steps."""
    end, done = time.monotonic() + 60 * minutes, []
    step.run(0)
    for number in range(1, steps):
        products = step.products(number)
        products.run()
        alone = min(timed(products.run), timed(products.run))
        taken = timed(lambda number=number: step.run(number))  # type: ignore[misc]
        done.append((products.operations / taken, products.operations / alone, step.batches.size(number)[1] / taken))
        if time.monotonic() > end and len(done) >= 3:
            break
    train, matmul, tokens = (statistics.median(values) for values in zip(*done, strict=True))
    ratio = statistics.median(train / matmul for train, matmul, _ in done)
    return Rates(ratio, train, matmul, step.wasted(0), tokens)


def tokens_ratio(step: Step, base: Step, minutes: float, steps: int = 1000) -> float:
    """Target tokens a second of `step` over those of `base`, in turn: median over groups of four steps of each."""
    end, ratios = time.monotonic() + 60 * minutes, []
    for number in range(0, steps, 4):
        rates = []
        for one in (step, base):
            tokens = sum(one.batches.size(i)[1] for i in range(number, number + 4))
            rates.append(tokens / timed(lambda one=one, number=number: [one.run(i) for i in range(number, number + 4)]))  # type: ignore[misc]
        ratios.append(rates[0] / rates[1])
        if time.monotonic() > end and len(ratios) >= 3:
            break
    return statistics.median(ratios[1:])


class Writer(Pipeline):
    """A pipeline whose texts are counted: `lengths` has their tokens, end marks included, of those written side by side."""

    decoding = DecodingConfig()

    @classmethod
    def trained(cls, pipeline: Pipeline) -> Writer:
        pipeline.need_context()
        return cls(pipeline.model, pipeline.tokenizer, pipeline.info)

    @classmethod
    def fresh(cls, corpus: Corpus, device: torch.device) -> Writer:
        """One of fresh weights in the sizes of `configs/chitchat-vhred.yaml`, whose replies all have `_TOKENS` tokens.

        By fresh weights all pieces are about as probable, by trained ones a few are. So the biases of the output layer are
        spread as the logarithms of frequencies are; and that of the end mark bars it.
        """
        torch.manual_seed(1)
        model = VRAE(ModelConfig(vocab_size=len(corpus.tokenizer), context_turns=3, speakers=True)).to(device)
        nn.init.normal_(model.decoder.out.bias, std=2.0)
        with torch.no_grad():
            model.decoder.out.bias[EOS] = -1e4
        writer = cls(model, corpus.tokenizer, {})
        writer.decoding = DecodingConfig(max_tokens=_TOKENS)
        return writer

    def decode(self, z_BZ: Tensor, context_BC: Tensor, noise_BT: Tensor | None, config: DecodingConfig) -> list[Decoded]:
        texts = super().decode(z_BZ, context_BC, noise_BT, config)
        tokens = [len(text.ids) + text.finished for text in texts]
        self.lengths += [tokens[start : start + ROWS] for start in range(0, len(tokens), ROWS)]
        return texts

    def write(self, contexts: list[list[str]], seed: int) -> None:
        self.lengths: list[list[int]] = []
        self.respond_many(contexts, _REPLIES, seed=seed, decoding=self.decoding, responses=ResponseConfig())

    def respond_ms(self, context: list[str], seconds: float) -> float:
        """Milliseconds of wall-clock time that the replies to one context take, median over seeds."""
        return 1000 * statistics.median(_repeat(lambda seed: timed(lambda: self.write([context], seed), wall=True), seconds))

    def products(self, contexts: list[list[str]]) -> Products:
        """The products that `write` made last, of the tokens that it drew."""
        batch = self.batch(self.windows([""] * len(contexts), contexts))
        return Products(writing_layers(self.model, batch, self.lengths), self.model.decoder.out.weight.dtype, self.model.device)

    def bulk_of_matmul(self, contexts: list[list[str]], seconds: float) -> float:
        """Operations a second of the replies to many contexts over those of their products alone: median over seeds."""

        def ratio(seed: int) -> float:
            taken = timed(lambda: self.write(contexts, seed))
            products = self.products(contexts)
            products.run()
            return min(timed(products.run), timed(products.run)) / taken

        return statistics.median(_repeat(ratio, seconds))


def gpt2_time_ratio(writer: Writer, context: list[str], gpt2: GPT2, seconds: float) -> float:
    """The time of `gpt2` over that of `writer`, for as many replies of `_TOKENS` tokens to one context: median over seeds.

    GPT-2 reads as many tokens of context as there are.
    """
    read = sum(len(turn) + 1 for turn in writer.windows([""], [context])[0].context)

    def ratio(seed: int) -> float:
        ours = statistics.median(timed(lambda i=i: writer.write([context], i)) for i in range(5 * seed, 5 * seed + 5))  # type: ignore[misc]
        return timed(lambda: gpt2.write(read, _REPLIES, _TOKENS)) / ours

    return statistics.median(_repeat(ratio, seconds))


def _repeat(measure: Callable[[int], float], seconds: float) -> list[float]:
    """What `measure` finds for the seeds 1, 2 .., for so many seconds and at least three of them; one more goes before."""
    measure(0)
    end, found = time.monotonic() + seconds, []
    for seed in itertools.count(1):
        found.append(measure(seed))
        if time.monotonic() > end and len(found) >= 3:
            return found
    raise AssertionError


def _turns(corpus: Corpus, count: int) -> list[str]:
    """So many turns of the validation split, from all over it."""
    split = corpus["validation"]
    turns = len(split.turns) - 1
    return [corpus.tokenizer.decode(split.turn(i * turns // count).tolist()) for i in range(count)]


@contextlib.contextmanager
def _corpus(data: str) -> Iterator[Corpus]:
    if data:
        yield Corpus(data)
        return
    with tempfile.TemporaryDirectory(prefix="vrae-bench-") as folder:
        note("preparing chitchat")
        yield prepare(PrepareConfig(SourceConfig("chitchat"), CHITCHAT_CLEANING), Path(folder) / "corpus", quiet=True)


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def timed(work: Callable[[], object], wall: bool = False) -> float:
    """Seconds; but for `wall` the processor's own where one thread of it works, which others on the machine disturb less."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available() and not wall
    clock = time.process_time if alone else time.perf_counter
    began = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began
