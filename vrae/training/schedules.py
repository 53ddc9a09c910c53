"""What changes over training: pure functions of the step, and one controller whose whole state is one number."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vrae.config import ObjectiveConfig, TrainConfig

_LOOK_EVERY, _MOST_STEPS = 15, 100  # of the aggressive phase, as in He et al. 2019


def learning_rate(step: int, max_steps: int, config: TrainConfig) -> float:
    """Linear warm-up to the highest rate, then half a cosine down to the final one at max_steps (Loshchilov & Hutter 2017)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = min((step - config.warmup_steps) / max(max_steps - config.warmup_steps, 1), 1.0)
    share = config.final_learning_rate + (1 - config.final_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * share


def kl_weight(step: int, config: ObjectiveConfig) -> float:
    """beta * schedule(step), with schedule between 0 and 1.

    It is 0 during `pretrain_steps`, and the schedule begins after them. `linear` and `logistic` are Bowman et al. 2016,
    section 3.1 (the logistic runs from 0.0025 to 0.9975 over the warm-up); `cyclical` is Fu et al. 2019, eq. 6-7: in each
    cycle a linear rise over the first half, then 1; after the last, 1.
    """
    if step < config.pretrain_steps:
        return 0.0
    progress = (step - config.pretrain_steps) / config.kl_warmup_steps
    if config.kl_schedule == "constant":
        return config.beta
    if config.kl_schedule == "cyclical":
        share = 1.0 if progress >= config.kl_cycles else min(2 * (progress % 1.0), 1.0)
        return config.beta * share
    if config.kl_schedule == "logistic":
        return config.beta / (1 + math.exp(-12 * (min(progress, 2.0) - 0.5)))
    progress = min(progress, 1.0)
    if config.kl_schedule == "cosine":
        progress = 0.5 * (1 - math.cos(math.pi * progress))
    return config.beta * progress


@dataclass
class RateController:
    """Holds the rate at a target by steering the kl_weight: integral control, as in ControlVAE (Shao et al. 2020, eq. 9).

    The integral is taken over the log of the weight, so that the weight stays positive and one gain
    serves weights of every size: log w += gain * clip((rate - target) / target, -1, 1).

    Args:
        target: nats per turn.
        highest: the largest weight.
        weight: the current one.
    """

    target: float
    highest: float
    weight: float = 0.05
    gain: float = 0.01
    lowest: float = 1e-3

    def __post_init__(self) -> None:
        self.weight = min(self.weight, self.highest)

    def update(self, rate: float) -> None:
        """Moves the weight after a step whose batch had this mean rate, in nats per turn."""
        error = min(max((rate - self.target) / self.target, -1.0), 1.0)
        self.weight = min(max(self.weight * math.exp(self.gain * error), self.lowest), self.highest)


@dataclass
class AggressivePhase:
    """Whether a step is the inference network's or the decoder's (He et al. 2019, algorithm 1).

    The inference network is updated until its loss stops falling, looked at every 15 steps and for 100 steps at most; then the
    decoder is, once. The phase ends for good when validation mutual information has not risen; from then on every step updates
    both. Each update is a step of training like any other, on a batch of its own.

    Args:
        over: the phase has ended.
        steps: updates of the inference network since the last one of the decoder.
        nats, tokens: summed loss and size of the batches since the last look.
        before: nats per token at the last look; None before the first.
        information: mutual information at the last validation, nats; None before the first.
    """

    over: bool = False
    steps: int = 0
    nats: float = 0.0
    tokens: int = 0
    before: float | None = None
    information: float | None = None

    @property
    def trains_inference(self) -> bool:
        """Whether the coming step is the inference network's alone."""
        return not self.over and self.steps < _MOST_STEPS

    def update(self, nats: float, tokens: int) -> None:
        """After a step whose batch had this summed loss."""
        if self.steps >= _MOST_STEPS:  # the decoder's
            self.steps, self.nats, self.tokens, self.before = 0, 0.0, 0, None
            return
        self.steps, self.nats, self.tokens = self.steps + 1, self.nats + nats, self.tokens + tokens
        if self.steps % _LOOK_EVERY == 0:
            now = self.nats / self.tokens
            if self.before is not None and now > self.before:
                self.steps = _MOST_STEPS
            self.before, self.nats, self.tokens = now, 0.0, 0

    def validated(self, information: float) -> bool:
        """After a validation; returns whether the phase is over."""
        self.over = self.over or (self.information is not None and information <= self.information)
        self.information = information
        return self.over
