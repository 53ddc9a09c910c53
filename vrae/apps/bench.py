"""How fast training is against what the machine can multiply, measured side by side so that a busy machine disturbs both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from vrae.config import RunConfig
from vrae.corpus.batches import TrainingBatches, Windows
from vrae.corpus.prepared import Corpus
from vrae.model.vrae import VRAE
from vrae.training.cost import Products, layers, repeated
from vrae.training.gradients import Gradients
from vrae.training.hardware import keep_memory, pick_device, pick_precision
from vrae.training.optimizer import make_optimizer
from vrae.training.run_folder import fit_to_corpus


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
        windows = Windows(corpus["train"], config.batches, config.model.context_turns)
        noise_size = config.objective.importance_samples * config.model.latent_size
        self.batches = TrainingBatches(windows, config.train.seed, noise_size)
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


def timed(work: Callable[[], object]) -> float:
    """Seconds; the processor's own where one thread of it works, which others on the machine disturb less."""
    clock = time.process_time if torch.get_num_threads() == 1 and not torch.cuda.is_available() else time.perf_counter
    began = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began
