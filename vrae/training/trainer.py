"""The training loop, top to bottom.

Everything random is a function of the seed and the step, so a run that is killed and resumed from its last checkpoint does
what the uninterrupted one would have done, bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vrae.config import RunConfig, TrainConfig
from vrae.corpus.batches import TrainingBatches, Windows
from vrae.corpus.prepared import Corpus
from vrae.errors import ModelError, UserError
from vrae.evaluation.information import ActiveUnits, offsets
from vrae.evaluation.likelihood import Bound, measure
from vrae.generation.pipeline import Pipeline
from vrae.model.vrae import VRAE
from vrae.training.checkpoint import Checkpoints
from vrae.training.hardware import pick_device, pick_precision
from vrae.training.monitor import LossLevel, Monitor, Watch, show
from vrae.training.objective import BagOfWords, objective
from vrae.training.run_folder import DRY_RUN, corpus_info, fit_to_corpus, open_run
from vrae.training.schedules import AggressivePhase, RateController, kl_weight, learning_rate
from vrae.training.signals import InterruptedRunError, RunSignals

_JUDGED_STEPS = 50  # after so many, max_steps 0 becomes a number


@dataclass
class Progress:
    """All of a run's state that is not a tensor; `trainer.json` of a checkpoint."""

    step: int = 0
    max_steps: int = 0  # the configuration's, or what max_minutes allow; 0: not known yet
    planned_minutes: float = 0.0  # the max_minutes that max_steps was judged by; 0: it was not
    minutes: float = 0.0
    tokens: int = 0
    kl_weight: float = 0.05  # the controller's, where a target rate is set
    best_step: int = -1
    best: float | None = None  # validation -elbo, nats per turn
    without_better: int = 0  # validations since
    validated: int = -1  # the step of the last validation
    skipped: int = 0  # steps whose loss or gradient was not finite
    sums: dict[str, float] = field(default_factory=dict)  # of the metrics line being filled
    active: dict[str, Any] = field(default_factory=dict)  # likewise, its active units
    aggressive: dict[str, Any] = field(default_factory=dict)  # the fields of AggressivePhase
    level: dict[str, Any] = field(default_factory=dict)  # the fields of LossLevel


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    run: Path
    step: int
    reason: str
    validation: Bound


def train(
    config: RunConfig,
    corpus: Corpus,
    run: str | Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> Result:
    """Trains a model on a prepared corpus into the folder `run`.

    Args:
        config: what and how; model.vocab_size 0 becomes the corpus's.
        corpus: its train and validation splits are used.
        run: new or empty, unless `resume`.
        resume: go on from the newest sound checkpoint in `run`, or from the start where there is none yet. Architecture,
            batches, objective and optimiser must be as they were; lengths, intervals and device may change.
        dry_run: two steps, a validation and a checkpoint in `run`/dry-run, to see that all of it works.
        quiet: no bar and no lines.

    Raises:
        UserError: the settings do not fit the corpus, or the folder holds another run, or one that another process trains.
        InterruptedRunError: a signal asked to stop; the state is saved.
        DivergenceError: ten steps in a row were not finite. The weights of the last checkpoint are; the batch is in
            `run`/diverged.json.
    """
    run = Path(run)
    if dry_run:
        run, resume = run / DRY_RUN, False
        short = {"max_steps": 2, "validate_every": 2, "checkpoint_every": 2, "validation_turns": 64, "log_every": 1}
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, **short))  # type: ignore[arg-type]
    config = fit_to_corpus(config, corpus)
    windows = {name: Windows(corpus[name], config.batches, config.model.context_turns) for name in ("train", "validation")}
    with open_run(config, corpus, run, resume=resume, overwrite=dry_run), RunSignals() as signals:
        return _Run(config, corpus, windows, run, resume, quiet).fit(signals)


class _Run:
    def __init__(
        self, config: RunConfig, corpus: Corpus, windows: dict[str, Windows], run: Path, resume: bool, quiet: bool
    ) -> None:
        self.config, self.corpus, self.run = config, corpus, run
        options = config.train
        if options.threads:
            torch.set_num_threads(options.threads)
        self.device = pick_device(options.device)
        self.precision = pick_precision(options.precision, self.device)
        torch.manual_seed(options.seed)
        self.model = VRAE(config.model).to(self.device)
        self.bag_of_words = BagOfWords(config.model).to(self.device) if config.objective.bag_of_words else None
        self.optimizer = _optimizer(self.model, self.bag_of_words, options)
        self.windows, self.validation = windows["train"], windows["validation"]
        self.noise_shape = config.objective.importance_samples, config.model.latent_size
        self.batches = TrainingBatches(self.windows, options.seed, math.prod(self.noise_shape))
        self.checkpoints = Checkpoints(run, options.keep_last, self.bag_of_words)
        self.progress = Progress()
        self.saved: tuple[Path, dict[str, Any]] | None = None  # the last checkpoint, and trainer.json of it
        warnings: list[str] = []
        if resume and self.checkpoints.found():
            restored = self.checkpoints.restore(self.model, self.optimizer)
            try:
                self.progress = Progress(**restored.state)
            except TypeError:
                raise ModelError(f"{restored.path}: the state of another version of vrae. Go on with that one") from None
            self.saved, warnings = (restored.path, restored.state), restored.warnings
        if options.max_steps or self.progress.planned_minutes != options.max_minutes:
            self.progress.max_steps, self.progress.planned_minutes = options.max_steps, 0.0
        self.monitor = Monitor(run, self.progress.step, self.progress.max_steps, tensorboard=options.tensorboard, quiet=quiet)
        for line in warnings:
            self.monitor.warn(f"{line}; going on from step {self.progress.step}")
        self.active = ActiveUnits(config.model.latent_size, self.progress.active)
        self.phase = AggressivePhase(**self.progress.aggressive or {"over": not config.objective.aggressive})
        self.watch = Watch(run, self.monitor, self.windows.split, corpus.tokenizer, LossLevel(**self.progress.level))

    def fit(self, signals: RunSignals) -> Result:
        """Trains to the end; returns with the best model on disk."""
        options, progress, say = self.config.train, self.progress, self.monitor.say
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        say(
            f"{parameters:,} parameters on {self.device} ({self.precision}); {len(self.windows):,} turns, "
            f"{self.windows.tokens:,} tokens, {self.windows.batches_per_epoch:,} steps an epoch; "
            f"{self.windows.left_out:,} turns of more than {self.config.batches.max_turn_tokens} tokens left out"
        )
        started, before, bound = time.monotonic(), progress.minutes, None
        try:
            while True:
                self._plan()
                reason = self._end()
                validates = progress.validated != progress.step and (reason or self._is_due(options.validate_every))
                if validates and not signals.number:
                    bound = self._validate(signals)
                    reason = self._end()
                if reason or self._is_due(options.checkpoint_every) or progress.best_step == progress.step:
                    self._save()
                self._heed(signals)
                if reason:
                    return Result(self.run, progress.step, reason, bound or self._bound())
                self._step()
                self.monitor.advance()
                progress.minutes = before + (time.monotonic() - started) / 60
        finally:
            self.monitor.close()

    def _heed(self, signals: RunSignals) -> None:
        """Between two steps: saves where a signal asks for it, and stops where one asks for that."""
        if signals.number:
            path = self._save()
            raise InterruptedRunError(f"stopped by signal {signals.number}; saved {path}. Go on with --resume", signals.number)
        if signals.save:
            signals.save = False
            self.monitor.say(f"saved {self._save()}, as SIGUSR1 asks")

    def _is_due(self, interval: int) -> bool:
        return self.progress.step > 0 and self.progress.step % interval == 0

    def _plan(self) -> None:
        """Judges the number of steps, where only minutes are given."""
        options, progress = self.config.train, self.progress
        if not progress.max_steps and progress.step >= _JUDGED_STEPS:
            progress.max_steps = max(int(0.97 * progress.step * options.max_minutes / progress.minutes), progress.step)
            progress.planned_minutes = options.max_minutes
            self.monitor.expect(progress.max_steps)

    def _end(self) -> str:
        """Why training is over; empty while it is not."""
        options, progress = self.config.train, self.progress
        if progress.max_steps and progress.step >= progress.max_steps:
            return f"step {progress.step} of {progress.max_steps}"
        if options.max_minutes and progress.minutes >= options.max_minutes:
            return f"{options.max_minutes:g} minutes"
        if options.patience and progress.without_better >= options.patience:
            return f"no better validation in {options.patience}"
        return ""

    def _step(self) -> None:
        """One optimiser step, which is skipped where something is not finite."""
        options, progress, config = self.config.train, self.progress, self.config.objective
        began = time.perf_counter()
        step, pretraining = progress.step, progress.step < config.pretrain_steps
        if step and step == config.pretrain_steps:
            self._renew_decoder()
        weight = self._kl_weight()
        rate_of_step = learning_rate(step, progress.max_steps or 10**9, options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate_of_step
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.batches.parts(step, options.accumulate)
        turns = sum(len(batch.target_B) for batch, _ in parts)
        tokens = sum(batch.tokens for batch, _ in parts)
        total, distortion, rate = (torch.zeros((), device=self.device) for _ in range(3))
        moved = []
        self.model.train()
        for i, (batch, noise_BX) in enumerate(parts):
            torch.manual_seed(_mix(options.seed, step, i))  # dropout
            noise_SBZ = noise_BX.view(len(noise_BX), *self.noise_shape).transpose(0, 1).to(self.device)
            noise_SBZ = torch.zeros_like(noise_SBZ) if pretraining else noise_SBZ
            with self._autocast():
                loss, terms, inferred = objective(
                    self.model, self.bag_of_words, batch.to(self.device), noise_SBZ, weight, config
                )
            (loss * (len(terms.distortion_B) / turns)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * len(terms.distortion_B)
            distortion += terms.distortion_B.detach().sum()
            rate += terms.rate_BZ.detach().sum()
            with torch.no_grad():
                moved.append(offsets(inferred.posterior, inferred.prior))
        for parameter in self._resting():
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self._parameters(), options.clip_norm or math.inf)
        progress.step += 1
        nats, nats_distortion, nats_rate, length = torch.stack((total, distortion, rate, norm)).tolist()  # waits for the device
        finite = all(map(math.isfinite, (nats, nats_distortion, nats_rate, length)))
        if finite:
            self.optimizer.step()
            for offsets_BZ in moved:
                self.active.add(offsets_BZ)
            if not pretraining:
                self._steer(nats, nats_rate, turns, tokens)
            self.watch.finite(progress.step, nats / tokens, self._turns(step))
        else:
            progress.skipped += 1
            self.watch.not_finite(progress.step, progress.skipped, self._turns(step))
        progress.tokens += tokens
        for key, value in {
            "turns": turns if finite else 0,
            "tokens": tokens,
            "distortion": nats_distortion if finite else 0.0,
            "rate": nats_rate if finite else 0.0,
            "seconds": time.perf_counter() - began,
        }.items():
            progress.sums[key] = progress.sums.get(key, 0.0) + value
        if progress.step % options.log_every == 0:
            self._log(weight, rate_of_step)

    def _kl_weight(self) -> float:
        """Of the coming step."""
        config, step = self.config.objective, self.progress.step
        if config.target_rate and step >= config.pretrain_steps:
            return min(self.progress.kl_weight, config.beta)
        return kl_weight(step, config)

    def _turns(self, step: int) -> np.ndarray:
        """The numbers, in the split, of the turns that the step in hand learns from."""
        return self.windows.target_N[self.batches._plan[step % self.windows.batches_per_epoch]]

    def _steer(self, loss: float, rate: float, turns: int, tokens: int) -> None:
        """What reacts to a step: the rate's controller, and whose turn it is in an aggressive phase. Sums over the batch."""
        config, progress = self.config.objective, self.progress
        if config.target_rate and self.config.model.latent_size:
            controller = RateController(config.target_rate, config.beta, progress.kl_weight)
            controller.update(rate / turns)
            progress.kl_weight = controller.weight
        if not self.phase.over:
            self.phase.update(loss, tokens)

    def _resting(self) -> list[nn.Parameter]:
        """The parameters that the coming update leaves alone: all but one network's while a phase is aggressive."""
        if self.phase.over or self.progress.step < self.config.objective.pretrain_steps:
            return []
        inference = self.model.inference_network()
        if not self.phase.trains_inference:
            return inference
        chosen = set(inference)
        return [parameter for parameter in self._parameters() if parameter not in chosen]

    def _renew_decoder(self) -> None:
        """Draws the decoder anew after pre-training, and forgets the optimiser's moments of it (Li et al. 2019)."""
        torch.manual_seed(_mix(self.config.train.seed, self.progress.step, 2**32 - 1))
        self.model.decoder.reset_parameters()
        for parameter in self.model.decoder.parameters():
            if parameter is not self.model.decoder.embedding.weight:
                self.optimizer.state.pop(parameter, None)
        self.watch.level = LossLevel()
        self.monitor.say(f"step {self.progress.step}: pre-training has ended, the decoder starts anew")

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _log(self, weight: float, rate_of_step: float) -> None:
        sums, progress = self.progress.sums, self.progress
        if not sums["turns"]:
            return  # every step since the last line was skipped
        distortion, rate = sums["distortion"] / sums["turns"], sums["rate"] / sums["turns"]
        self.monitor.metrics(
            {
                "step": progress.step,
                "epoch": round(progress.step / self.windows.batches_per_epoch, 4),
                "split": "train",
                "elbo": -(distortion + rate),
                "rate": rate,
                "distortion": distortion,
                "kl_weight": weight,
                "active_units": self.active.count,
                "tokens_per_second": sums["tokens"] / sums["seconds"],
                "lr": rate_of_step,
            }
        )
        progress.sums = {}
        self.active = ActiveUnits(self.config.model.latent_size)

    def _validate(self, signals: RunSignals) -> Bound | None:
        """Measures, shows and records; nothing where a signal asks to stop before all is measured."""
        progress = self.progress
        began = time.perf_counter()
        with signals.breaking_off():
            bound = self._bound()
            seconds = time.perf_counter() - began
            shown = show(Pipeline(self.model, self.corpus.tokenizer, self._info()), self.validation)
        if signals.number:
            return None
        aggressive = not self.phase.over and progress.step > self.config.objective.pretrain_steps
        if aggressive and self.phase.validated(bound.mutual_information):
            self.monitor.say("    mutual information no longer rises: every step now trains the whole model")
        self.monitor.metrics(
            {
                "step": progress.step,
                "epoch": round(progress.step / self.windows.batches_per_epoch, 4),
                "split": "validation",
                "elbo": bound.elbo,
                "rate": bound.rate,
                "distortion": bound.distortion,
                "kl_weight": self._kl_weight(),
                "active_units": bound.active_units,
                "tokens_per_second": bound.tokens / seconds,
                "lr": learning_rate(progress.step, progress.max_steps or 10**9, self.config.train),
                "bits_per_token": bound.bits_per_token,
            }
        )
        if bound.collapse.state in ("collapsed", "partially collapsed"):
            self.monitor.say(f"    warning: {bound.collapse.words}")
        self.monitor.samples({"step": progress.step, "samples": shown})
        if progress.best is None or -bound.elbo < progress.best:
            progress.best, progress.best_step, progress.without_better = -bound.elbo, progress.step, 0
        else:
            progress.without_better += 1
        progress.validated = progress.step
        return bound

    def _bound(self) -> Bound:
        return measure(self.model, self.validation, limit=self.config.train.validation_turns)

    def _save(self) -> Path:
        """Writes a checkpoint, unless the last one holds this very state."""
        self.progress.active = self.active.state
        self.progress.aggressive = dataclasses.asdict(self.phase)
        self.progress.level = dataclasses.asdict(self.watch.level)
        state = dataclasses.asdict(self.progress)
        if self.saved is None or self.saved[1] != state:
            try:
                path = self.checkpoints.save(self.model, self.optimizer, self.corpus.tokenizer, self._info(), state)
            except OSError as error:
                raise UserError(f"--out {self.run}: cannot write a checkpoint: {error.strerror or error}") from None
            self.saved = path, state
        return self.saved[0]

    def _info(self) -> dict[str, Any]:
        return {"run": dataclasses.asdict(self.config), "corpus": corpus_info(self.corpus)}

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def _optimizer(model: VRAE, bag_of_words: BagOfWords | None, options: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019); biases are not decayed."""
    named = list(model.named_parameters())
    if bag_of_words is not None:
        named += list(bag_of_words.named_parameters("bag_of_words"))
    groups: list[dict[str, Any]] = [
        {"params": [(n, p) for n, p in named if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [(n, p) for n, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.99), fused=True)


def _mix(seed: int, step: int, part: int) -> int:
    """A seed of torch's for each (seed, step, part)."""
    return int(np.random.SeedSequence([seed, 2, step, part]).generate_state(1, np.uint64)[0] >> 1)
