"""The training loop, top to bottom.

Everything random is a function of the seed and the step, so a run that is killed and resumed from its last checkpoint does
what the uninterrupted one would have done, bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vrae.config import DecodingConfig, RunConfig, TrainConfig, from_dict
from vrae.corpus.batches import TrainingBatches, Windows
from vrae.corpus.prepared import Corpus
from vrae.errors import ConfigError, DivergenceError, UserError
from vrae.evaluation.information import ActiveUnits, offsets
from vrae.evaluation.likelihood import Bound, measure
from vrae.files import to_json, write_file
from vrae.generation.pipeline import Pipeline
from vrae.model.vrae import VRAE, ElboTerms
from vrae.training.checkpoint import Checkpoints
from vrae.training.monitor import Monitor
from vrae.training.objective import loss
from vrae.training.schedules import RateController, kl_weight, learning_rate
from vrae.training.signals import InterruptedRunError, StopSignals

_JUDGED_STEPS = 50  # after so many, max_steps 0 becomes a number
_BAD_STEPS = 10  # non-finite steps in a row that end a run
_LOOSE = {"max_steps", "max_minutes", "log_every", "validate_every", "checkpoint_every", "keep_last", "patience"}
_LOOSE |= {"validation_turns", "device", "threads", "tensorboard", "precision", "accumulate"}


@dataclass
class Progress:
    """All of a run's state that is not a tensor; `trainer.json` of a checkpoint."""

    step: int = 0
    max_steps: int = 0  # the configuration's, or what max_minutes allow; 0: not known yet
    minutes: float = 0.0
    tokens: int = 0
    kl_weight: float = 0.05  # the controller's, where a target rate is set
    best_step: int = -1
    best: float = math.inf  # validation -elbo, nats per turn
    without_better: int = 0  # validations since
    skipped: int = 0  # steps whose loss or gradient was not finite
    sums: dict[str, float] = field(default_factory=dict)  # of the metrics line being filled


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
        resume: go on from the newest sound checkpoint in `run`. Architecture, batches, objective and optimiser must be as
            they were; lengths, intervals and device may change.
        dry_run: two steps, a validation and a checkpoint in `run`/dry-run, to see that all of it works.
        quiet: no bar and no lines.

    Raises:
        UserError: the settings do not fit the corpus, or the folder holds another run.
        DivergenceError: ten steps in a row were not finite; the last checkpoint is from before them.
    """
    run = Path(run)
    if dry_run:
        run, resume = run / "dry-run", False
        short = {"max_steps": 2, "validate_every": 2, "checkpoint_every": 2, "validation_turns": 64, "log_every": 1}
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, **short))  # type: ignore[arg-type]
    config = _fit_to_corpus(config, corpus)
    _open_run(config, corpus, run, resume=resume, overwrite=dry_run)
    return _Run(config, corpus, run, resume, quiet).fit()


class _Run:
    def __init__(self, config: RunConfig, corpus: Corpus, run: Path, resume: bool, quiet: bool) -> None:
        self.config, self.corpus, self.run = config, corpus, run
        options = config.train
        if options.threads:
            torch.set_num_threads(options.threads)
        self.device = pick_device(options.device)
        self.precision = pick_precision(options.precision, self.device)
        torch.manual_seed(options.seed)
        self.model = VRAE(config.model).to(self.device)
        self.optimizer = _optimizer(self.model, options)
        self.windows = Windows(corpus["train"], config.batches, config.model.context_turns)
        self.validation = Windows(corpus["validation"], config.batches, config.model.context_turns)
        self.batches = TrainingBatches(self.windows, options.seed, config.model.latent_size)
        self.checkpoints = Checkpoints(run, options.keep_last)
        self.progress = Progress()
        warnings: list[str] = []
        if resume:
            restored = self.checkpoints.restore(self.model, self.optimizer)
            self.progress, warnings = Progress(**restored.state), restored.warnings
        self.progress.max_steps = options.max_steps or self.progress.max_steps
        self.monitor = Monitor(run, self.progress.step, self.progress.max_steps, tensorboard=options.tensorboard, quiet=quiet)
        for line in warnings:
            self.monitor.say(line)
        self.active = ActiveUnits(config.model.latent_size)

    def fit(self) -> Result:
        """Trains to the end; returns with the best model on disk."""
        with StopSignals() as signals:
            return self._loop(signals)

    def _loop(self, signals: StopSignals) -> Result:
        options, progress, say = self.config.train, self.progress, self.monitor.say
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        say(
            f"{parameters:,} parameters on {self.device} ({self.precision}); {len(self.windows):,} turns, "
            f"{self.windows.tokens:,} tokens, {self.windows.batches_per_epoch:,} steps an epoch; "
            f"{self.windows.left_out:,} turns of more than {self.config.batches.max_turn_tokens} tokens left out"
        )
        started, before, bad = time.monotonic(), progress.minutes, 0
        validation = None
        reason = ""
        try:
            while not reason:
                if signals.number:
                    path = self._save()
                    raise InterruptedRunError(
                        f"stopped by signal {signals.number}; saved {path}. Go on with --resume", signals.number
                    )
                bad = 0 if self._step() else bad + 1
                if bad == _BAD_STEPS:
                    raise DivergenceError(
                        f"{_BAD_STEPS} steps in a row up to step {progress.step} were not finite. The last checkpoint is "
                        "from before them; lower train.learning_rate or train.clip_norm and resume"
                    )
                self.monitor.advance()
                progress.minutes = before + (time.monotonic() - started) / 60
                if not progress.max_steps and progress.step >= _JUDGED_STEPS:
                    progress.max_steps = int(0.97 * progress.step * options.max_minutes / progress.minutes)
                    self.monitor.expect(progress.max_steps)
                if progress.max_steps and progress.step >= progress.max_steps:
                    reason = f"step {progress.step} of {progress.max_steps}"
                elif options.max_minutes and progress.minutes >= options.max_minutes:
                    reason = f"{options.max_minutes:g} minutes"
                due = progress.step % options.validate_every == 0 or bool(reason)
                if due:
                    validation = self._validate()
                    if options.patience and progress.without_better >= options.patience:
                        reason = reason or f"no better validation in {options.patience}"
                if reason or progress.step % options.checkpoint_every == 0 or (due and progress.without_better == 0):
                    self._save()
        finally:
            self.monitor.close()
        assert validation is not None
        return Result(self.run, progress.step, reason, validation)

    def _step(self) -> bool:
        """One optimiser step. Returns False where it was skipped because something was not finite."""
        options, progress, objective = self.config.train, self.progress, self.config.objective
        began = time.perf_counter()
        step, Z = progress.step, self.config.model.latent_size
        controller = (
            RateController(objective.target_rate, objective.beta, progress.kl_weight) if objective.target_rate else None
        )
        weight = controller.weight if controller else kl_weight(step, objective)
        rate_of_step = learning_rate(step, progress.max_steps or 10**9, options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate_of_step
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.batches.parts(step, options.accumulate)
        turns = sum(len(batch.target_B) for batch, _ in parts)
        tokens = sum(batch.tokens for batch, _ in parts)
        distortion, rate = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        self.model.train()
        for i, (batch, noise_BZ) in enumerate(parts):
            torch.manual_seed(_mix(options.seed, step, i))  # dropout
            with self._autocast():
                terms, offsets_BZ = self._forward(batch.to(self.device), noise_BZ.to(self.device))
            share = len(terms.distortion_B) / turns
            (loss(terms, weight, objective) * share).backward()  # type: ignore[no-untyped-call]
            distortion += terms.distortion_B.detach().sum()
            rate += terms.rate_BZ.detach().sum()
            self.active.add(offsets_BZ)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip_norm or math.inf)
        progress.step += 1
        finite = math.isfinite(float(norm)) and math.isfinite(float(distortion + rate))
        if finite:
            self.optimizer.step()
            if controller and Z:
                controller.update(float(rate) / turns)
                progress.kl_weight = controller.weight
        else:
            progress.skipped += 1
            self.monitor.say(f"step {progress.step}: loss or gradient not finite, skipped ({progress.skipped} so far)")
        progress.tokens += tokens
        for key, value in {
            "turns": turns,
            "tokens": tokens,
            "distortion": float(distortion) if finite else 0.0,
            "rate": float(rate) if finite else 0.0,
            "seconds": time.perf_counter() - began,
        }.items():
            progress.sums[key] = progress.sums.get(key, 0.0) + value
        if progress.step % options.log_every == 0:
            self._log(weight, rate_of_step)
        return finite

    def _forward(self, batch: Any, noise_BZ: Tensor) -> tuple[ElboTerms, Tensor]:
        inferred = self.model.infer(batch)
        z_BZ = inferred.posterior.sample(noise_BZ)
        distortion_B = -self.model.log_prob(batch, z_BZ, inferred.context_BC)
        terms = ElboTerms(distortion_B, inferred.posterior.kl(inferred.prior))
        return terms, offsets(inferred.posterior, inferred.prior)

    def _log(self, weight: float, rate_of_step: float) -> None:
        sums, progress = self.progress.sums, self.progress
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

    def _validate(self) -> Bound:
        progress, objective = self.progress, self.config.objective
        began = time.perf_counter()
        batches = (batch for _, batch in self.validation.in_order(self.config.train.validation_turns))
        bound = measure(self.model, batches)
        weight = progress.kl_weight if objective.target_rate else kl_weight(progress.step, objective)
        self.monitor.metrics(
            {
                "step": progress.step,
                "epoch": round(progress.step / self.windows.batches_per_epoch, 4),
                "split": "validation",
                "elbo": bound.elbo,
                "rate": bound.rate,
                "distortion": bound.distortion,
                "kl_weight": weight,
                "active_units": bound.active_units,
                "tokens_per_second": bound.tokens / (time.perf_counter() - began),
                "lr": learning_rate(progress.step, progress.max_steps or 10**9, self.config.train),
                "bits_per_token": bound.bits_per_token,
            }
        )
        if bound.collapse.state in ("collapsed", "partially collapsed"):
            self.monitor.say(f"    warning: {bound.collapse.words}")
        self.monitor.samples({"step": progress.step, "samples": self._samples()})
        if -bound.elbo < progress.best:
            progress.best, progress.best_step, progress.without_better = -bound.elbo, progress.step, 0
        else:
            progress.without_better += 1
        return bound

    def _samples(self) -> dict[str, list[Any]]:
        """A few things the model does, the same inputs and noise each time."""
        pipeline = Pipeline(self.model, self.corpus.tokenizer, self._info())
        split, decoding = self.corpus["validation"], DecodingConfig()
        chosen = self.validation.target_N[:: max(len(self.validation) // 5, 1)][:5].tolist()
        texts = [self.corpus.tokenizer.decode(split.turn(turn)) for turn in chosen]
        shown: dict[str, list[Any]] = {}
        if self.config.model.latent_size:
            shown["reconstruction"] = [[r.text, r.reconstruction] for r in pipeline.reconstruct(texts)]
        if self.config.model.context_turns:
            replies = pipeline.respond_many([[text] for text in texts], 2, seed=0, decoding=decoding)
            shown["reply"] = [[text, *(r.text for r in found)] for text, found in zip(texts, replies, strict=True)]
        shown["sample"] = [s.text for s in pipeline.sample(5, seed=0, decoding=decoding)]
        return shown

    def _save(self) -> Path:
        return self.checkpoints.save(
            self.model, self.optimizer, self.corpus.tokenizer, self._info(), dataclasses.asdict(self.progress)
        )

    def _info(self) -> dict[str, Any]:
        return {"run": dataclasses.asdict(self.config), "corpus": _corpus_info(self.corpus)}

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r}: expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: torch sees {torch.cuda.device_count()} GPUs here")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware multiplies in it: recent GPUs, and CPUs with AVX512-BF16."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def _optimizer(model: VRAE, options: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019); biases are not decayed."""
    named = list(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [(n, p) for n, p in named if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [(n, p) for n, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.99), fused=True)


def _fit_to_corpus(config: RunConfig, corpus: Corpus) -> RunConfig:
    size = len(corpus.tokenizer)
    if config.model.vocab_size not in (0, size):
        raise ConfigError(
            f"--model.vocab_size {config.model.vocab_size}: the tokenizer of {corpus.path} has {size} pieces. Leave it at 0"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def _open_run(config: RunConfig, corpus: Corpus, run: Path, *, resume: bool, overwrite: bool) -> None:
    """Checks that `run` is what the caller says, and records what is trained there."""
    record = run / "run.json"
    now = {"config": dataclasses.asdict(config), "corpus": _corpus_info(corpus)}
    if resume:
        try:
            then = json.loads(record.read_bytes())
            old = from_dict(RunConfig, then["config"], str(record))
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"--resume: {run} holds no run (run.json). Leave --resume out to start one") from None
        if then["corpus"]["fingerprint"] != now["corpus"]["fingerprint"]:
            raise UserError(
                f"--resume: {corpus.path} is not the corpus this run was trained on ({then['corpus']['source']}); its bytes "
                "differ. Pass the --data of that run"
            )
        changed = _changes(dataclasses.asdict(old), dataclasses.asdict(config))
        if changed:
            raise UserError(
                f"--resume: {', '.join(changed)}. A resumed run keeps its settings, but for its length, intervals and device; "
                "start a new run (--out) for others"
            )
    elif run.exists() and any(run.iterdir()) and not overwrite:
        raise UserError(f"--out {run}: not empty. Choose another folder, or pass --resume to go on with the run in it")
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_file(record, to_json(now))
    except OSError as error:
        raise UserError(f"--out {run}: cannot write: {error.strerror}") from None


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{group}.{name} was {old[group][name]} and is {new[group][name]}"
        for group in old
        for name in old[group]
        if old[group][name] != new[group][name] and not (group == "train" and name in _LOOSE)
    ]


def _corpus_info(corpus: Corpus) -> dict[str, Any]:
    manifest = corpus.manifest
    return {
        "source": manifest["source"]["name"],
        "licence": manifest["source"]["licence"],
        "fingerprint": corpus.fingerprint,
        "cleaning": manifest["settings"]["cleaning"],
        "splits": manifest["splits"],
    }


def _mix(seed: int, step: int, part: int) -> int:
    """A seed of torch's for each (seed, step, part)."""
    return int(np.random.SeedSequence([seed, 2, step, part]).generate_state(1, np.uint64)[0] >> 1)
