"""The training loop, top to bottom.

Everything random is a function of the seed and the step, so a run that is killed and resumed from its last checkpoint does
what the uninterrupted one would have done, bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vrae.config import RunConfig
from vrae.corpus.batches import TrainingBatches, Windows
from vrae.corpus.prepared import Corpus
from vrae.distributed import add_up, by_first, first, gather, processes, same, world
from vrae.errors import DivergenceError, ModelError, UserError
from vrae.evaluation.information import ActiveUnits
from vrae.evaluation.likelihood import Bound, measure
from vrae.generation.pipeline import Pipeline
from vrae.model.vrae import VRAE
from vrae.training.board import TensorBoard
from vrae.training.callbacks import Callback
from vrae.training.checkpoint import Checkpoints, Restored
from vrae.training.gradients import Gradients, mix
from vrae.training.hardware import describe, keep_memory, pick_device, pick_precision
from vrae.training.monitor import LogFormat, LossLevel, Monitor, Watch, latent_map, show
from vrae.training.objective import BagOfWords
from vrae.training.optimizer import make_optimizer
from vrae.training.run_folder import DRY_RUN, corpus_info, fit_to_corpus, open_run, versions
from vrae.training.schedules import AggressivePhase, RateController, kl_weight, learning_rate
from vrae.training.signals import InterruptedRunError, RunSignals

# of a validation, beside the weights
_REMEMBERED = (
    *("turns", "tokens", "elbo", "rate", "distortion", "perplexity", "bits_per_token", "mutual_information"),
    *("active_units", "latent_size"),
)
_JUDGED_STEPS = 50  # from so many on, the pace says how many there will be


@dataclass
class Progress:
    """All of a run's state that is not a tensor; `trainer.json` of a checkpoint."""

    step: int = 0
    max_steps: int = 0  # the configuration's, or what max_minutes allow; 0: not known yet
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
    validation: Bound  # at the end
    best_step: int  # whose model is the one that is loaded
    best: float  # its validation -elbo, nats per turn


def train(
    config: RunConfig,
    corpus: Corpus,
    run: str | Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    log_format: LogFormat = "text",
) -> Result:
    """Trains a model on a prepared corpus into the folder `run`.

    Started by torchrun, the processes share each batch, and end with the model that one alone would have; all must see `run`
    and the corpus, and the first one writes.

    Args:
        config: what and how; model.vocab_size 0 becomes the corpus's.
        corpus: its train and validation splits are used.
        run: new or empty, unless `resume`.
        resume: go on from the newest sound checkpoint in `run`, or from the start where there is none or no run yet.
            Architecture, batches, objective and optimiser must be as they were; lengths, intervals, device and the number of
            processes may change.
        dry_run: two steps, a validation and a checkpoint in `run`/dry-run, to see that all of it works.
        quiet: no bar and no lines but warnings.
        callbacks: are told what happens, see `Callback`.
        log_format: of the lines on stderr: `text`, `json`, or `auto`, text on a terminal and JSON elsewhere.

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
    noise_size = config.objective.importance_samples * config.model.latent_size
    batches = TrainingBatches(corpus["train"], config.batches, config.model.context_turns, config.train.seed, noise_size)
    validation = Windows(corpus["validation"], config.batches, config.model.context_turns)
    with processes():
        pick_device(config.train.device)  # refused before anything is written
        with by_first(open_run(config, corpus, run, resume=resume, overwrite=dry_run)), RunSignals() as signals:
            same("configuration", config)
            same("corpus", corpus.fingerprint)
            try:
                told = [*callbacks, *([TensorBoard()] if config.train.tensorboard and first() else [])]
                return _Run(config, corpus, batches, validation, run, resume, quiet, told, log_format).fit(signals)
            except (InterruptedRunError, DivergenceError) as error:
                if first():
                    raise
                raise SystemExit(error.exit_code) from None  # which the first one explains


class _Run:
    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        batches: TrainingBatches,
        validation: Windows,
        run: Path,
        resume: bool,
        quiet: bool,
        callbacks: Sequence[Callback],
        log_format: LogFormat,
    ) -> None:
        self.config, self.corpus, self.run, self.batches, self.validation = config, corpus, run, batches, validation
        options = config.train
        if options.threads:
            torch.set_num_threads(options.threads)
        self.device = pick_device(options.device)
        self.precision = pick_precision(options.precision, self.device)
        if self.device.type == "cpu":
            keep_memory()
        torch.manual_seed(options.seed)
        self.model = VRAE(config.model).to(self.device)
        self.bag_of_words = BagOfWords(config.model).to(self.device) if config.objective.bag_of_words else None
        self.optimizer = make_optimizer(self.model, self.bag_of_words, options, self.precision)
        self.gradients = Gradients(self.model, self.bag_of_words, self.batches, config, self.device, self.precision)
        self.checkpoints = Checkpoints(run, options.keep_last, self.bag_of_words)
        self.progress = Progress()
        self.agreed: tuple[int, bool] = (0, False)  # what signals have asked any of several processes for
        self.measured: Bound | None = None  # the last validation of this process
        self.saved: tuple[Path, dict[str, Any]] | None = None  # the last checkpoint, and trainer.json of it
        warnings: list[str] = []
        if resume and self.checkpoints.found():
            restored = self.checkpoints.restore(self.model, self.optimizer)
            self.progress = _progress(restored, config.model.latent_size)
            self.saved, warnings = (restored.path, restored.state), restored.warnings
        self.progress.max_steps = options.max_steps
        show_as: dict[str, Any] = {"callbacks": callbacks, "log_format": log_format, "quiet": quiet}
        self.monitor = Monitor(run, self.progress.step, self.progress.max_steps, **show_as)
        for line in warnings:
            self.monitor.warn(f"{line}; going on from step {self.progress.step}")
        self.active = ActiveUnits(config.model.latent_size, self.progress.active)
        self.phase = AggressivePhase(**self.progress.aggressive or {"over": not config.objective.aggressive})
        self.watch = Watch(run, self.monitor, corpus["train"], corpus.tokenizer, LossLevel(**self.progress.level))
        same("state", self.progress)

    def fit(self, signals: RunSignals) -> Result:
        """Trains to the end; returns with the best model on disk."""
        options, progress, say = self.config.train, self.progress, self.monitor.say
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        say(
            f"{parameters:,} parameters on {self.device} ({self.precision}); {self.batches.turns:,} turns, "
            f"{self.batches.tokens:,} tokens, {self.batches.batches_per_epoch:,} steps an epoch; "
            f"{self.batches.left_out:,} turns of more than {self.config.batches.max_turn_tokens} tokens left out"
        )
        self.started, bound, reason = time.monotonic() - 60 * progress.minutes, None, ""
        for callback in self.monitor.callbacks:
            callback.start(self.run, self._info(), progress.step)
        try:
            while True:
                self._plan()
                reason = self._end()
                validates = progress.validated != progress.step and (reason or self._is_due(options.validate_every))
                if validates and not self._asked(signals)[0]:
                    bound = self._validate(signals)
                    reason = self._end()
                if reason or self._is_due(options.checkpoint_every) or progress.best_step == progress.step:
                    self._save(needed=bool(reason))
                self._heed(signals)
                if reason:
                    self._show_latents()
                    bound = bound or self._bound()
                    best = -bound.elbo if progress.best is None else progress.best
                    return Result(self.run, progress.step, reason, bound, progress.best_step, best)
                self._step(signals)
                self.monitor.advance()
        finally:
            self.monitor.close()
            for callback in self.monitor.callbacks:
                callback.end(reason)

    def _show_latents(self) -> None:
        """At the end, where anyone wants to see them."""
        if self.monitor.callbacks and self.config.model.latent_size and len(self.validation):
            pipeline = Pipeline(self.model, self.corpus.tokenizer, self._info())
            record = {"step": self.progress.step, **latent_map(pipeline, self.validation)}
            for callback in self.monitor.callbacks:
                callback.latents(record)

    def _heed(self, signals: RunSignals) -> None:
        """Between two steps: saves where a signal asks for it, and stops where one asks for that."""
        number, save = self._asked(signals)
        if number:
            path = self._save(needed=True)
            raise InterruptedRunError(f"stopped by signal {number}; saved {path}. Go on with --resume", number)
        if save:
            signals.save = False
            self.monitor.say(f"saved {self._save(needed=True)}, as SIGUSR1 asks")

    def _asked(self, signals: RunSignals) -> tuple[int, bool]:
        """Which signal asks to stop (0: none), and whether one asks to save; of several processes, as the last step found."""
        return (signals.number, signals.save) if world() == 1 else self.agreed

    def _is_due(self, interval: int) -> bool:
        return self.progress.step > 0 and self.progress.step % interval == 0

    def _plan(self) -> None:
        """Judges the number of steps by the pace so far, where only minutes are given; before each step anew, since the
        machine may get other work, and a learning rate that does not come down leaves a poor model."""
        options, progress = self.config.train, self.progress
        if not options.max_steps and progress.step >= _JUDGED_STEPS:
            progress.max_steps = max(int(0.97 * progress.step * options.max_minutes / progress.minutes), progress.step)
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

    def _step(self, signals: RunSignals) -> None:
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
        self.model.train()
        turns_B, (turns, tokens) = self.batches.turns_of(step), self.batches.size(step)
        parts = self.gradients.parts
        sums, moved = self.gradients.of(step, weight, pretraining=pretraining)
        if self.gradients.parts > parts:
            self.monitor.warn(f"step {step + 1}: out of memory; from now on a batch is worked in {self.gradients.parts} parts")
        for parameter in self._resting():
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self._parameters(), options.clip_norm or math.inf)
        progress.step += 1
        asks = [signals.number == signal.SIGINT, signals.number == signal.SIGTERM, signals.save]
        mine = [(time.monotonic() - self.started) / 60 if first() else 0.0, *map(float, asks)]
        sums = torch.cat([sums, sums.new_tensor(mine)])
        add_up([sums])
        values = torch.cat([sums, norm.double()[None]]).tolist()  # waits for the device
        nats, nats_distortion, nats_rate, progress.minutes, interrupts, terminations, saves, length = values
        self.agreed = (signal.SIGTERM if terminations else signal.SIGINT if interrupts else 0), saves > 0
        finite = all(map(math.isfinite, (nats, nats_distortion, nats_rate, length)))
        if finite:
            self.optimizer.step()
            for offsets_BZ in moved:
                self.active.add(offsets_BZ)
            if not pretraining:
                self._steer(nats, nats_rate, turns, tokens)
            self.watch.finite(progress.step, nats / tokens, turns_B)
        else:
            progress.skipped += 1
            self.watch.not_finite(progress.step, progress.skipped, turns_B)
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
        torch.manual_seed(mix(self.config.train.seed, self.progress.step, 2**32 - 1))
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
        self._join_active()
        if not sums["turns"]:
            return  # every step since the last line was skipped
        distortion, rate = sums["distortion"] / sums["turns"], sums["rate"] / sums["turns"]
        self.monitor.metrics(
            {
                "step": progress.step,
                "epoch": round(progress.step / self.batches.batches_per_epoch, 4),
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
        """Measures, shows and records; nothing where a signal asks to stop before all is measured.

        Several processes, which have to agree on it, do so when it is done.
        """
        progress = self.progress
        began = time.perf_counter()
        with signals.breaking_off() if world() == 1 else contextlib.nullcontext():
            bound = self._bound()
            seconds = time.perf_counter() - began
            shown = show(Pipeline(self.model, self.corpus.tokenizer, self._info()), self.validation) if first() else {}
        if signals.number and world() == 1:
            return None
        aggressive = not self.phase.over and progress.step > self.config.objective.pretrain_steps
        if aggressive and self.phase.validated(bound.mutual_information):
            self.monitor.say("    mutual information no longer rises: every step now trains the whole model")
        self.monitor.metrics(
            {
                "step": progress.step,
                "epoch": round(progress.step / self.batches.batches_per_epoch, 4),
                "split": "validation",
                "elbo": bound.elbo,
                "rate": bound.rate,
                "distortion": bound.distortion,
                "kl_weight": self._kl_weight(),
                "active_units": bound.active_units,
                "tokens_per_second": bound.tokens / seconds,
                "lr": learning_rate(progress.step, progress.max_steps or 10**9, self.config.train),
                "bits_per_token": bound.bits_per_token,
                "rate_per_dimension": bound.rate_per_dimension,
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
        self.measured = bound
        return bound

    def _bound(self) -> Bound:
        return measure(self.model, self.validation, limit=self.config.train.validation_turns)

    def _join_active(self) -> None:
        """The first process takes over what the others know of active units."""
        known = gather(self.active.state)
        if world() > 1:
            self.active = ActiveUnits(self.config.model.latent_size)
            for state in known:
                self.active.add_state(state)

    def _save(self, *, needed: bool) -> Path:
        """Writes a checkpoint, unless the last one holds this very state.

        Args:
            needed: raise UserError where it cannot be written; else say so and go on.
        """
        self._join_active()
        path = self.checkpoints.path(self.progress.step)
        if not first():
            return path
        self.progress.active = self.active.state
        self.progress.aggressive = dataclasses.asdict(self.phase)
        self.progress.level = dataclasses.asdict(self.watch.level)
        state = dataclasses.asdict(self.progress)
        if self.saved is None or self.saved[1] != state:
            try:
                self.checkpoints.save(self.model, self.optimizer, self.corpus.tokenizer, self._info(), state)
            except OSError as error:
                problem = f"--out {self.run}: cannot write a checkpoint: {error.strerror or error}"
                if needed:
                    raise UserError(problem) from None
                self.monitor.warn(f"step {self.progress.step}: {problem}; going on without")
                return path
            self.saved = path, state
        return path

    def _info(self) -> dict[str, Any]:
        """What the model remembers, with the figures of a validation at this very step."""
        info: dict[str, Any] = {"run": dataclasses.asdict(self.config), "corpus": corpus_info(self.corpus)}
        info |= {"versions": versions(), "hardware": describe(self.device, self.precision)}
        if self.measured and self.progress.validated == self.progress.step:
            info["validation"] = {key: getattr(self.measured, key) for key in _REMEMBERED}
        return info


def _progress(restored: Restored, latent_size: int) -> Progress:
    """Raises ModelError where the state is not what `Progress` holds."""
    blank, state = dataclasses.asdict(Progress()), restored.state
    numbers = (int, float, type(None))
    try:
        if any(not isinstance(state[name], numbers if isinstance(value, numbers) else dict) for name, value in blank.items()):
            raise TypeError
        progress = Progress(**state)
        ActiveUnits(latent_size, progress.active).add(torch.zeros(1, latent_size))
        AggressivePhase(**progress.aggressive)
        LossLevel(**progress.level)
    except (TypeError, KeyError, ValueError, RuntimeError):
        raise ModelError(f"{restored.path}: the state of another version of vrae. Go on with that one") from None
    return progress
