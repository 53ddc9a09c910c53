"""Training runs: resuming is exact, every end leaves a sound checkpoint, and what is reported is never weighted."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import make_dialogues, prepare_config, write_dialogues
from torch import Tensor

import vrae.training.gradients as gradients
import vrae.training.trainer as trainer
from vrae.apps.cli import main
from vrae.config import BatchConfig, ModelConfig, ObjectiveConfig, RunConfig, TrainConfig
from vrae.corpus.batches import Batch
from vrae.corpus.prepared import Corpus, prepare
from vrae.corpus.tokenizer import EOS
from vrae.errors import ConfigError, DivergenceError, ModelError, UserError
from vrae.evaluation.likelihood import Bound
from vrae.files import write_folder
from vrae.generation.pipeline import load
from vrae.model.vrae import ElboTerms
from vrae.training.monitor import read_records
from vrae.training.signals import InterruptedRunError, RunSignals
from vrae.training.trainer import Result, train

MODEL = dict(latent_size=4, embedding_size=12, hidden_size=16, context_size=8, dropout=0.0)
TRAIN = dict(max_steps=20, learning_rate=0.01, final_learning_rate=0.05, warmup_steps=5)
TRAIN |= dict(log_every=4, validate_every=10, checkpoint_every=10)
TRAIN |= dict(validation_turns=40, precision="fp32", device="cpu", threads=1)

K0 = dict(
    model=dict(dropout=0.1),
    objective=dict(target_rate=3.0),
    train=dict(max_steps=200, validate_every=50, checkpoint_every=26),
)
K2 = dict(
    model=dict(
        context_turns=2, dropout=0.2, speakers=True, prior="mixture", prior_components=3, flow_steps=2, skip_latent=True
    ),
    batches=dict(word_dropout=0.3, context_dropout=0.3, utterance_dropout=0.2),
    objective=dict(free_bits=0.3, kl_warmup_steps=30, bag_of_words=0.5, pretrain_steps=35),
    train=dict(max_steps=80, validate_every=15, checkpoint_every=10, accumulate=2),
)


def run_config(**groups: dict[str, Any]) -> RunConfig:
    """A run of seconds; each group's settings can be overridden."""
    return RunConfig(
        model=ModelConfig(**{**MODEL, **groups.get("model", {})}),
        batches=BatchConfig(**{**dict(tokens=128, max_turn_tokens=24, segment_turns=4), **groups.get("batches", {})}),
        objective=ObjectiveConfig(**{**dict(kl_schedule="linear", kl_warmup_steps=50), **groups.get("objective", {})}),
        train=TrainConfig(**{**TRAIN, **groups.get("train", {})}),
    )


def fit(run: Path, corpus: Corpus, resume: bool = False, dry_run: bool = False, **groups: dict[str, Any]) -> Result:
    return train(run_config(**groups), corpus, run, resume=resume, dry_run=dry_run, quiet=True)


def records(run: Path, split: str = "", drop: str = "tokens_per_second") -> list[dict[str, Any]]:
    found = read_records(run / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k != drop} for r in found if r["split"] == split or not split]


def checkpoint(run: Path, pointer: str = "last") -> Path:
    return run / "checkpoints" / (run / "checkpoints" / pointer).read_text()


def state(run: Path) -> dict[str, Any]:
    """trainer.json without what the clock says."""
    found: dict[str, Any] = json.loads((checkpoint(run) / "trainer.json").read_bytes())
    del found["minutes"]
    found["sums"].pop("seconds", None)
    return found


def weights(run: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(checkpoint(run) / "model.safetensors")


def assert_same_run(a: Path, b: Path) -> None:
    """The same bits in all but the clock."""
    assert checkpoint(a).name == checkpoint(b).name
    for pointer in ("last", "best"):
        names = sorted(
            path.name for path in checkpoint(a, pointer).iterdir() if path.name not in ("trainer.json", "manifest.json")
        )
        assert {"model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.model"} <= set(names)
        for name in names:
            assert (checkpoint(a, pointer) / name).read_bytes() == (checkpoint(b, pointer) / name).read_bytes(), name
    assert state(a) == state(b)
    assert records(a) == records(b)
    assert (a / "samples.jsonl").read_bytes() == (b / "samples.jsonl").read_bytes()


@pytest.fixture(scope="module")
def long_run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 uninterrupted steps of the K = 0 model that is held at a rate. Not to be written to."""
    run = tmp_path_factory.mktemp("long") / "run"
    fit(run, corpus, **K0)
    return run


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, ElboTerms, Tensor], Tensor | None]], list[ElboTerms]]:
    """Calls a function with the number, terms and value of every loss; what it returns, if anything, is minimised."""

    def install(function: Callable[[int, ElboTerms, Tensor], Tensor | None]) -> list[ElboTerms]:
        seen: list[ElboTerms] = []
        real = gradients.objective

        def objective(*arguments: Any) -> tuple[Tensor, ElboTerms, Any]:
            value, terms, inferred = real(*arguments)
            seen.append(ElboTerms(*(part.detach().clone() for part in terms)))
            changed = function(len(seen), terms, value)
            return value if changed is None else changed, terms, inferred

        monkeypatch.setattr(gradients, "objective", objective)
        return seen

    return install


@pytest.fixture
def in_double_precision() -> Iterator[None]:
    """New models have float64 weights."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


BATCHES = run_config().batches


def targets(batch: Batch) -> list[list[int]]:
    """The ids of each target, end mark included."""
    turns = [row[:length].tolist() for row, length in zip(batch.turns_NT, batch.turn_lengths_N.tolist(), strict=True)]
    return [turns[place] for place in batch.target_B.tolist()]


Hook = Callable[[Callable[[int, ElboTerms, Tensor], Any]], list[ElboTerms]]


def nan_at(*steps: int) -> Callable[[int, ElboTerms, Tensor], Tensor | None]:
    return lambda step, terms, value: value * math.nan if step in steps else None


# Aggressive phase (it ends on the way), running moments of the batch normalisation, several samples.
PHASES = dict(
    model=dict(batch_norm_scale=0.6),
    objective=dict(aggressive=True, pretrain_steps=20, importance_samples=3, doubly_reparameterised=True, kl_warmup_steps=30),
    train=dict(max_steps=100, validate_every=15, checkpoint_every=10),
)


class TestResume:
    @pytest.mark.parametrize(
        ("settings", "seed"), [(K0, 1), (K2, 2), (PHASES, 3)], ids=["K0-target_rate", "K2-dropouts", "K0-phases"]
    )
    def test_after_sigkill_at_any_step_gives_the_uninterrupted_run_bit_for_bit(
        self, corpus: Corpus, tmp_path: Path, request: pytest.FixtureRequest, settings: dict[str, Any], seed: int
    ) -> None:
        config, killed = run_config(**settings), tmp_path / "killed"
        if settings is K0:
            whole: Path = request.getfixturevalue("long_run")
        else:
            whole = tmp_path / "whole"
            fit(whole, corpus, **settings)
        (tmp_path / "config.yaml").write_text(json.dumps(dataclasses.asdict(config)))  # JSON is YAML
        command = ["-m", "vrae", "train", "--config", str(tmp_path / "config.yaml"), "--data", str(corpus.path), "--quiet"]
        process = subprocess.Popen([sys.executable, *command, "--out", str(killed)])
        try:
            last = config.train.max_steps
            moment = random.Random(seed).randint(config.train.checkpoint_every + 4, last - 30)
            deadline = time.monotonic() + 60
            while not (found := records(killed)) or found[-1]["step"] < moment:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
        assert 0 < state(killed)["step"] < last

        result = train(config, corpus, killed, resume=True, quiet=True)
        assert result.step == last
        assert_same_run(whole, killed)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("step", [1, 7, 20])
    def test_after_a_signal_at_any_step_does_so_too(
        self,
        corpus: Corpus,
        tmp_path: Path,
        hook: Hook,
        monkeypatch: pytest.MonkeyPatch,
        number: signal.Signals,
        step: int,
    ) -> None:
        real = gradients.offsets  # some units are active already, in a line of metrics.jsonl that is half filled
        monkeypatch.setattr(gradients, "offsets", lambda *gaussians: real(*gaussians) * torch.tensor([0.1, 2.0, 4.0, 50.0]))
        fit(tmp_path / "whole", corpus)
        hook(lambda at, terms, value: signal.raise_signal(number) if at == step else None)
        with pytest.raises(InterruptedRunError) as caught:
            fit(tmp_path / "stopped", corpus)
        assert caught.value.exit_code == 128 + number
        assert str(checkpoint(tmp_path / "stopped")) in str(caught.value)
        assert state(tmp_path / "stopped")["step"] == step  # the step in hand is finished
        fit(tmp_path / "stopped", corpus, resume=True)
        assert_same_run(tmp_path / "whole", tmp_path / "stopped")

    @pytest.mark.parametrize("part", ["measure", "show"])
    @pytest.mark.parametrize("step", [10, 20])
    def test_after_a_signal_in_a_validation_does_so_too(
        self, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, step: int
    ) -> None:
        fit(tmp_path / "whole", corpus)
        real, validations = getattr(trainer, part), iter(range(10, 99, 10))
        ended = []

        def interrupted(*arguments: Any, **options: Any) -> Any:
            if next(validations) == step:
                signal.raise_signal(signal.SIGTERM)
            ended.append(step)
            return real(*arguments, **options)

        monkeypatch.setattr(trainer, part, interrupted)
        with pytest.raises(InterruptedRunError):
            fit(tmp_path / "stopped", corpus)
        assert len(ended) == step // 10 - 1  # it was broken off
        monkeypatch.undo()
        assert (state(tmp_path / "stopped")["step"], state(tmp_path / "stopped")["validated"]) == (step, [-1, 10][step // 20])
        assert [r["step"] for r in records(tmp_path / "stopped", "validation")] == [10][: step // 20]
        fit(tmp_path / "stopped", corpus, resume=True)
        assert_same_run(tmp_path / "whole", tmp_path / "stopped")

    def test_after_sigusr1_saves_and_goes_on(self, corpus: Corpus, tmp_path: Path, hook: Hook) -> None:
        fit(tmp_path / "whole", corpus)
        saved: list[set[str]] = []

        def ask(at: int, terms: ElboTerms, value: Tensor) -> None:
            saved.append({path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")})
            if at in (3, 14):
                signal.raise_signal(signal.SIGUSR1)

        hook(ask)
        before = signal.getsignal(signal.SIGUSR1)
        assert fit(tmp_path / "run", corpus).step == 20
        assert signal.getsignal(signal.SIGUSR1) == before
        assert saved[2:4] == [set(), {"step-00000003"}]  # after the step in hand
        assert saved[13:15] == [{"step-00000003", "step-00000010"}, {"step-00000010", "step-00000014"}]
        assert_same_run(tmp_path / "whole", tmp_path / "run")

    def test_before_the_first_checkpoint_starts_from_the_beginning(self, corpus: Corpus, tmp_path: Path) -> None:
        fit(tmp_path / "whole", corpus)
        shutil.copytree(tmp_path / "whole", tmp_path / "run")
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        fit(tmp_path / "run", corpus, resume=True)
        assert_same_run(tmp_path / "whole", tmp_path / "run")

    def test_of_a_state_that_another_version_wrote_is_refused(self, corpus: Corpus, tmp_path: Path) -> None:
        fit(tmp_path, corpus)
        path = checkpoint(tmp_path)
        files = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "manifest.json"}
        files["trainer.json"] = json.dumps({**json.loads(files["trainer.json"]), "novelty": 1}).encode()
        write_folder(path, files)
        with pytest.raises(ModelError, match=r"step-00000020: the state of another version"):
            fit(tmp_path, corpus, resume=True)

    @pytest.mark.parametrize("validate_every", [10, 7, 99])
    @pytest.mark.parametrize("checkpoint_every", [10, 7, 99])
    def test_of_a_finished_run_changes_nothing(
        self, corpus: Corpus, tmp_path: Path, validate_every: int, checkpoint_every: int
    ) -> None:
        settings = dict(validate_every=validate_every, checkpoint_every=checkpoint_every)
        first = fit(tmp_path, corpus, train=settings)
        assert state(tmp_path)["step"] == state(tmp_path)["validated"] == records(tmp_path, "validation")[-1]["step"] == 20
        before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
        again = fit(tmp_path, corpus, resume=True, train=settings)
        assert again == first
        assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before

    def test_may_be_longer_and_at_other_intervals(self, corpus: Corpus, tmp_path: Path) -> None:
        fit(tmp_path / "run", corpus)
        result = fit(tmp_path / "run", corpus, resume=True, train=dict(max_steps=30, log_every=5, validate_every=7))
        assert (result.step, result.reason) == (30, "step 30 of 30")
        assert [r["step"] for r in records(tmp_path / "run", "train")] == [4, 8, 12, 16, 20, 25, 30]

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            (dict(model=dict(latent_size=8)), "model.latent_size was 4 and is 8"),
            (dict(model=dict(hidden_size=20)), "model.hidden_size was 16 and is 20"),
            (dict(batches=dict(tokens=256)), "batches.tokens was 128 and is 256"),
            (dict(objective=dict(free_bits=0.5)), "objective.free_bits was 0.0 and is 0.5"),
            (dict(train=dict(seed=9)), "train.seed was 1 and is 9"),
            (dict(train=dict(learning_rate=0.5)), "train.learning_rate was 0.01 and is 0.5"),
        ],
    )
    def test_with_a_changed_setting_names_it_and_both_values(
        self, corpus: Corpus, long_run: Path, changed: dict[str, Any], message: str
    ) -> None:
        settings = {key: {**K0.get(key, {}), **changed.get(key, {})} for key in ("model", "batches", "objective", "train")}
        before = (long_run / "run.json").read_bytes()
        with pytest.raises(UserError) as caught:
            fit(long_run, corpus, resume=True, **settings)
        assert message in str(caught.value)
        assert (long_run / "run.json").read_bytes() == before

    def test_on_another_corpus_is_refused(self, long_run: Path, tmp_path: Path) -> None:
        source = write_dialogues(tmp_path / "other.txt", make_dialogues(seed=1))
        other = prepare(prepare_config(source), tmp_path / "other", quiet=True)
        with pytest.raises(UserError, match="other is not the corpus this run was trained on"):
            fit(long_run, other, resume=True, **K0)

    def test_from_a_damaged_checkpoint_goes_back_one_and_says_so(
        self, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings: dict[str, Any] = dict(train=dict(keep_last=2))
        fit(tmp_path / "whole", corpus, **settings)
        fit(tmp_path / "run", corpus, **settings)
        newest = checkpoint(tmp_path / "run")
        (newest / "optimizer.safetensors").write_bytes(b"damaged")
        capsys.readouterr()
        fit(tmp_path / "run", corpus, resume=True, **settings)  # which is quiet but for this
        said = capsys.readouterr().err
        assert said.startswith(f"vrae: warning: {newest}: damaged (optimizer.safetensors")
        assert said.endswith("; going on from step 10\n")
        assert said.count("\n") == 1
        assert_same_run(tmp_path / "whole", tmp_path / "run")

    @pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"config": {}}', '{"config": {}, "corpus": 1}', "\0"])
    def test_of_a_folder_whose_record_is_damaged_is_refused(self, corpus: Corpus, tmp_path: Path, text: str) -> None:
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(UserError, match=r"holds no run \(run.json\)"):
            fit(tmp_path, corpus, resume=True)

    def test_of_nothing_starts_a_run_but_not_among_other_files(self, corpus: Corpus, tmp_path: Path) -> None:
        """So that one command serves the first start and every later one, as schedulers and torchrun want it."""
        for folder in (tmp_path / "new", tmp_path / "empty"):
            (tmp_path / "empty").mkdir(exist_ok=True)
            assert fit(folder, corpus, resume=True, train=dict(max_steps=3)).step == 3
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("chapter 1")
        with pytest.raises(UserError, match=r"not empty.*holds no run"):
            fit(tmp_path / "mine", corpus, resume=True)
        assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


class TestLearning:
    def test_lowers_the_bound_on_held_out_turns(self, long_run: Path, corpus: Corpus) -> None:
        nats = [-record["elbo"] for record in records(long_run, "validation")]
        assert [record["step"] for record in records(long_run, "validation")] == [50, 100, 150, 200]
        split = corpus["validation"]
        pieces = [size + 1 for size in np.diff(split.turns).tolist() if size <= 24]
        uniform = math.log(400) * sum(pieces) / len(pieces)  # what a model spends that knows nothing
        assert nats[-1] < 0.75 * uniform
        assert nats[-1] < nats[0]

    def test_steers_the_weight_by_the_rate_of_each_step(self, corpus: Corpus, tmp_path: Path) -> None:
        fit(tmp_path / "run", corpus, objective=dict(target_rate=0.5, beta=0.055), train=dict(max_steps=30, log_every=1))
        weight = 0.05
        for record in records(tmp_path / "run", "train"):
            assert record["kl_weight"] == pytest.approx(weight, rel=1e-9)
            weight = min(weight * math.exp(0.01 * np.clip(record["rate"] / 0.5 - 1, -1, 1)), 0.055)
        assert weight != 0.05
        assert state(tmp_path / "run")["kl_weight"] == pytest.approx(weight, rel=1e-9)

    def test_is_the_same_for_the_same_seed_and_another_for_another(self, corpus: Corpus, tmp_path: Path) -> None:
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            fit(tmp_path / name, corpus, train=dict(seed=seed, max_steps=10))
        assert_same_run(tmp_path / "a", tmp_path / "b")
        assert records(tmp_path / "a") != records(tmp_path / "c")

    @pytest.mark.parametrize(
        "settings",
        [
            dict(),
            dict(objective=dict(target_rate=3.0)),
            dict(model=dict(context_turns=2, speakers=True), batches=dict(word_dropout=0.3, context_dropout=0.3)),
            dict(objective=dict(free_bits=1.0, free_bits_per="turn")),
            dict(model=dict(latent_size=0)),
        ],
        ids=["plain", "target_rate", "context", "free_bits", "no_latent"],
    )
    def test_in_three_parts_is_the_same_as_in_one(
        self, corpus: Corpus, tmp_path: Path, settings: dict[str, Any], in_double_precision: None
    ) -> None:
        for parts in (1, 3):
            fit(tmp_path / str(parts), corpus, **settings, train=dict(accumulate=parts, max_steps=12))
        one, three = weights(tmp_path / "1"), weights(tmp_path / "3")
        for name in one:
            assert torch.allclose(one[name], three[name], rtol=0, atol=1e-9), name
        for a, b in zip(records(tmp_path / "1"), records(tmp_path / "3"), strict=True):
            assert a.pop("split") == b.pop("split")
            assert a.pop("rate_per_dimension", []) == pytest.approx(b.pop("rate_per_dimension", []), rel=1e-9)
            assert a == pytest.approx(b, rel=1e-9)

    def test_pretrains_an_autoencoder_and_then_draws_the_decoder_anew(
        self, corpus: Corpus, tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        moments: list[set[str]] = []
        real = trainer._Run._renew_decoder

        def spy(run: Any) -> None:
            names = {parameter: name for name, parameter in run.model.named_parameters()}
            before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
            real(run)
            changed = {name for name, parameter in run.model.named_parameters() if not torch.equal(parameter, before[name])}
            moments.extend([changed, {names[parameter] for parameter in run.optimizer.state}, set(before)])

        monkeypatch.setattr(trainer._Run, "_renew_decoder", spy)
        seen = hook(lambda *_: None)
        settings = dict(pretrain_steps=8, kl_schedule="linear", kl_warmup_steps=4)
        fit(tmp_path / "run", corpus, objective=settings, train=dict(log_every=1, max_steps=14))
        changed, remembered, names = moments
        fresh = {name for name in names if name.startswith("decoder.") and name != "decoder.embedding.weight"}
        assert changed == fresh
        assert remembered == names - fresh
        found = records(tmp_path / "run", "train")
        assert [record["kl_weight"] for record in found] == [0.0] * 9 + [0.25, 0.5, 0.75, 1.0, 1.0]
        assert seen[8].distortion_B.mean() > seen[7].distortion_B.mean()  # what the old decoder knew is gone

    def test_pretraining_hears_no_noise(self, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        loud: list[bool] = []
        real = gradients.objective

        def spy(*arguments: Any) -> Any:
            loud.append(bool(arguments[3].any()))
            return real(*arguments)

        monkeypatch.setattr(gradients, "objective", spy)
        fit(tmp_path / "run", corpus, objective=dict(pretrain_steps=3), train=dict(max_steps=5))
        assert loud == [False] * 3 + [True] * 2

    def test_in_an_aggressive_phase_moves_one_network_at_a_time_until_information_falls(
        self, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        moved: list[str] = []
        real = trainer._Run._step

        def spy(run: Any, signals: RunSignals) -> None:
            inference = {id(parameter) for parameter in run.model.inference_network()}
            before = [(parameter, parameter.detach().clone()) for parameter in run._parameters()]
            real(run, signals)
            changed = {id(parameter) in inference for parameter, old in before if not torch.equal(parameter, old)}
            moved.append(
                {frozenset([True]): "q", frozenset([False]): "p", frozenset([True, False]): "both"}[frozenset(changed)]
            )

        monkeypatch.setattr(trainer._Run, "_step", spy)
        information = iter([0.5, 0.7, 0.6, 0.9])
        real_bound = trainer._Run._bound
        monkeypatch.setattr(
            trainer._Run, "_bound", lambda run: dataclasses.replace(real_bound(run), mutual_information=next(information))
        )
        settings = dict(max_steps=130, validate_every=40, learning_rate=1e-4)
        fit(tmp_path / "run", corpus, objective=dict(aggressive=True, bag_of_words=1.0), train=settings)
        assert moved[0] == "q"
        assert moved.count("p") >= 1
        decoder_steps = [i for i, which in enumerate(moved[:120]) if which == "p"]
        assert "both" not in moved[:120]
        between = np.diff([-1, *decoder_steps]) - 1  # updates of the inference network: a multiple of 15, or 100
        assert set(between.tolist()) <= {30, 45, 60, 75, 90, 100}
        assert set(moved[120:]) == {"both"}

    def test_trains_the_bag_of_words_beside_the_model_and_keeps_it_out_of_the_model_folder(
        self, corpus: Corpus, tmp_path: Path
    ) -> None:
        fit(tmp_path / "run", corpus, objective=dict(bag_of_words=1.0))
        stored = safetensors.torch.load_file(checkpoint(tmp_path / "run") / "auxiliary.safetensors")
        assert stored.keys() == {"hidden.weight", "hidden.bias", "out.weight", "out.bias"}
        assert not any("bag" in name for name in weights(tmp_path / "run"))

    @pytest.mark.parametrize("settings", [K0, K2, dict(model=dict(latent_size=0))], ids=["K0", "K2", "no_latent"])
    def test_gives_a_model_that_loads_and_writes(self, corpus: Corpus, tmp_path: Path, settings: dict[str, Any]) -> None:
        result = fit(tmp_path / "run", corpus, **{**settings, "train": dict(max_steps=10)})
        pipeline = load(tmp_path / "run")
        assert len(list(pipeline.sample(3, seed=0))) == 3
        assert pipeline.info["step"] == 10
        assert pipeline.info["corpus"]["fingerprint"] == corpus.fingerprint
        assert result.validation.latent_size == pipeline.model.config.latent_size

    def test_takes_turns_longer_than_a_user_may_type(
        self, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vrae.generation.text_model.MAX_CHARACTERS", 9)
        monkeypatch.setattr("vrae.training.monitor.MAX_CHARACTERS", 9)
        assert fit(tmp_path / "run", corpus, model=dict(context_turns=1)).step == 20


class TestRecords:
    def test_an_elbo_is_never_weighted(self, long_run: Path) -> None:
        found = records(long_run)
        assert len(found) == 54
        for record in found:
            assert record["elbo"] == -(record["rate"] + record["distortion"])
            assert 0 < record["kl_weight"] < 1

    @pytest.mark.parametrize(
        "settings",
        [
            dict(objective=dict(beta=0.3, kl_schedule="constant")),
            dict(objective=dict(free_bits=2.0)),
            dict(model=dict(context_turns=2), objective=dict(free_bits=9.0, free_bits_per="turn")),
        ],
    )
    @pytest.mark.parametrize("accumulate", [1, 3])
    def test_are_means_over_the_turns_of_the_interval(
        self, corpus: Corpus, tmp_path: Path, hook: Hook, settings: dict[str, Any], accumulate: int
    ) -> None:
        parts = hook(lambda *_: None)
        fit(tmp_path / "run", corpus, **settings, train=dict(accumulate=accumulate, validate_every=100))
        found = records(tmp_path / "run", "train")
        assert [record["step"] for record in found] == [4, 8, 12, 16, 20]
        for i, record in enumerate(found):
            interval = parts[4 * accumulate * i : 4 * accumulate * (i + 1)]
            turns = sum(len(part.distortion_B) for part in interval)
            for name, value in (("distortion", "distortion_B"), ("rate", "rate_B"), ("elbo", "elbo_B")):
                mean = sum(float(getattr(part, value).double().sum()) for part in interval) / turns
                assert record[name] == pytest.approx(mean, rel=1e-5)

    def test_name_the_weight_and_the_learning_rate_of_their_step(self, corpus: Corpus, tmp_path: Path, hook: Hook) -> None:
        values: list[float] = []
        terms = hook(lambda at, terms, value: values.append(float(value.detach())))
        fit(tmp_path / "run", corpus, train=dict(log_every=1))
        for record, bound, value in zip(records(tmp_path / "run", "train"), terms, values, strict=True):
            done = record["step"] - 1  # the first step is step 0 of the schedules
            assert record["kl_weight"] == pytest.approx(done / 50)
            warm = min((done + 1) / 5, 1)
            progress = max(done - 5, 0) / 15
            assert record["lr"] == pytest.approx(0.01 * warm * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2))
            assert value == pytest.approx(float(bound.distortion_B.mean() + done / 50 * bound.rate_B.mean()), rel=1e-6)

    def test_of_validation_are_what_the_saved_model_measures(self, long_run: Path, corpus: Corpus) -> None:
        pipeline = load(checkpoint(long_run))
        windows = trainer.Windows(corpus["validation"], run_config(**K0).batches, 0)
        bound = trainer.measure(pipeline.model, windows, limit=40)
        last = records(long_run, "validation")[-1]
        for name in ("elbo", "rate", "distortion", "active_units", "bits_per_token"):
            assert last[name] == getattr(bound, name)

    def test_count_active_units_over_the_interval(
        self, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Tensor] = []
        real = gradients.offsets

        def spy(*gaussians: Any) -> Tensor:
            seen.append(real(*gaussians) * torch.tensor([0.1, 2.0, 4.0, 50.0]))
            return seen[-1]

        monkeypatch.setattr(gradients, "offsets", spy)
        fit(tmp_path / "run", corpus, train=dict(validate_every=100))
        found = [record["active_units"] for record in records(tmp_path / "run", "train")]
        expected = [torch.cat(seen[i : i + 4]).detach().double().var(0) for i in range(0, 20, 4)]
        assert found == [int((variance >= 0.01).sum()) for variance in expected]
        assert len(set(found)) > 1

    def test_say_in_words_that_the_posterior_has_collapsed(
        self, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # A rate that costs twenty times its nats from the first step on is given up at once.
        config = run_config(objective=dict(kl_schedule="constant", beta=20.0), train=dict(max_steps=60, validate_every=60))
        result = train(config, corpus, tmp_path / "run")
        assert result.validation.collapse.state == "collapsed"
        warning = capsys.readouterr().err
        assert "warning: the posterior has collapsed onto the prior: the rate is 0.0" in warning
        assert "objective.free_bits" in warning

    def test_say_nothing_of_the_kind_where_there_is_no_latent(
        self, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        train(run_config(model=dict(latent_size=0)), corpus, tmp_path / "run")
        assert "warning" not in capsys.readouterr().err

    def test_hold_samples_of_the_same_inputs_each_time(self, corpus: Corpus, tmp_path: Path) -> None:
        fit(tmp_path / "run", corpus, model=dict(context_turns=1))
        first, second = (record["samples"] for record in read_records(tmp_path / "run" / "samples.jsonl"))
        assert first.keys() == second.keys() == {"reconstruction", "reply", "sample"}
        for kind in ("reconstruction", "reply"):
            assert [row[0] for row in first[kind]] == [row[0] for row in second[kind]]
            assert len(first[kind]) == 5


class TestBadSteps:
    def test_are_skipped_and_counted_and_leave_the_weights_alone(self, corpus: Corpus, tmp_path: Path, hook: Hook) -> None:
        short = dict(max_steps=6, log_every=3)
        hook(nan_at(4, 5, 6))
        fit(tmp_path / "bad", corpus, train=short)
        assert state(tmp_path / "bad")["skipped"] == 3
        assert state(tmp_path / "bad")["step"] == 6
        assert [record["step"] for record in records(tmp_path / "bad", "train")] == [3]  # nothing to tell of 4 to 6
        hook(nan_at())
        fit(tmp_path / "good", corpus, train={**short, "max_steps": 3})
        bad, good = weights(tmp_path / "bad"), weights(tmp_path / "good")  # up to step 3 both warm up
        assert all(torch.equal(bad[name], good[name]) for name in good)

    def test_do_not_enter_the_records(self, corpus: Corpus, tmp_path: Path, hook: Hook) -> None:
        parts = hook(nan_at(2))
        fit(tmp_path / "run", corpus, train=dict(max_steps=4))
        [record] = records(tmp_path / "run", "train")
        good = [part for i, part in enumerate(parts, 1) if i != 2]
        distortion = torch.cat([part.distortion_B for part in good]).double().mean()
        assert record["distortion"] == pytest.approx(float(distortion), rel=1e-6)
        assert record["elbo"] == -(record["distortion"] + record["rate"])

    def test_do_not_spoil_the_count_of_active_units(
        self, corpus: Corpus, tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, count = gradients.offsets, iter(range(1, 99))
        monkeypatch.setattr(gradients, "offsets", lambda q, p: real(q, p) * (math.nan if next(count) == 2 else 1e3))
        hook(nan_at(2))
        fit(tmp_path / "run", corpus, train=dict(max_steps=4))
        [record] = records(tmp_path / "run", "train")
        assert record["active_units"] == 4

    def test_are_those_with_infinite_terms_too(self, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real, count = trainer.VRAE.log_prob, iter(range(1, 999))
        monkeypatch.setattr(trainer.VRAE, "log_prob", lambda *a: real(*a) * (math.inf if next(count) == 2 else 1))
        fit(tmp_path / "run", corpus, train=dict(max_steps=4))
        [record] = records(tmp_path / "run", "train")
        assert math.isfinite(record["elbo"])
        assert state(tmp_path / "run")["skipped"] == 1

    def test_ten_in_a_row_end_the_run_with_exit_code_3(self, corpus: Corpus, tmp_path: Path, hook: Hook) -> None:
        hook(nan_at(*range(8, 99)))
        with pytest.raises(DivergenceError, match="10 steps in a row up to step 17") as caught:
            fit(tmp_path / "run", corpus, train=dict(max_steps=50, checkpoint_every=5))
        assert caught.value.exit_code == 3
        assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())
        assert state(tmp_path / "run")["step"] == 15
        # What they learnt from, as the model was given it.
        train_split, parts = corpus["train"], trainer.TrainingBatches(corpus["train"], BATCHES, 0, 1, 4)
        found = read_records(tmp_path / "run" / "incidents.jsonl")
        assert [(record["step"], record["event"]) for record in found] == [(step, "not finite") for step in range(8, 18)]
        for record in found:
            [(batch, _)] = parts.parts(record["step"] - 1)
            assert [[*map(int, train_split.turn(turn)), EOS] for turn in record["turns"]] == targets(batch)
        dump = json.loads((tmp_path / "run" / "diverged.json").read_bytes())
        assert dump["step"] == 17
        assert [row["turn"] for row in dump["batch"]] == found[-1]["turns"]
        assert [row["ids"] for row in dump["batch"]] == [row[:-1] for row in targets(batch)]
        assert dump["batch"][0]["text"] == corpus.tokenizer.decode(dump["batch"][0]["ids"])

    def test_nine_in_a_row_do_not(self, corpus: Corpus, tmp_path: Path, hook: Hook) -> None:
        hook(nan_at(*range(2, 11), *range(12, 21)))
        assert fit(tmp_path / "run", corpus, train=dict(max_steps=22)).step == 22
        assert state(tmp_path / "run")["skipped"] == 18


class TestSpikes:
    def test_are_on_record_with_what_they_learnt_from_and_resuming_changes_nothing_about_it(
        self, corpus: Corpus, tmp_path: Path, hook: Hook
    ) -> None:
        values: list[float] = []

        def spike(at: int, terms: ElboTerms, value: Tensor) -> Tensor | None:
            values.append(float(value.detach()) * (20 if at == 60 else 1))
            return value * 20 if at == 60 else None

        hook(spike)
        settings: dict[str, Any] = dict(train=dict(max_steps=70, validate_every=99, checkpoint_every=55))
        fit(tmp_path / "whole", corpus, **settings)
        [record] = read_records(tmp_path / "whole" / "incidents.jsonl")
        assert (record["step"], record["event"]) == (60, "spike")
        parts = trainer.TrainingBatches(corpus["train"], BATCHES, 0, 1, 4)
        per_token = []
        for step, value in enumerate(values[:60]):
            [(batch, _)] = parts.parts(step)
            per_token.append(value * len(batch.target_B) / batch.tokens)
        assert [[*map(int, corpus["train"].turn(turn)), EOS] for turn in record["turns"]] == targets(batch)
        assert record["loss"] == pytest.approx(per_token[-1], rel=1e-6)
        assert record["mean"] == pytest.approx(np.mean(per_token[:-1]), rel=1e-6)
        expected = (per_token[-1] - np.mean(per_token[:-1])) / np.std(per_token[:-1])
        assert record["deviations"] == pytest.approx(expected, rel=1e-5)

        values.clear()
        hook(lambda at, terms, value: signal.raise_signal(signal.SIGTERM) if at == 57 else None)
        with pytest.raises(InterruptedRunError):
            fit(tmp_path / "stopped", corpus, **settings)
        hook(lambda at, terms, value: value * 20 if at == 3 else None)  # step 60 again
        fit(tmp_path / "stopped", corpus, resume=True, **settings)
        assert read_records(tmp_path / "stopped" / "incidents.jsonl") == [record]

    def test_are_not_what_a_run_does_by_itself(self, long_run: Path) -> None:
        assert read_records(long_run / "incidents.jsonl") == []


class TestEnd:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every look at the clock is the 64th of a minute after the one before."""

        def ticks() -> Iterator[float]:
            now = 0.0
            while True:
                yield now
                now += 60 / 64

        ticking = ticks()
        fake = type(time)("time")
        fake.monotonic, fake.perf_counter = lambda: next(ticking), time.perf_counter  # type: ignore[attr-defined]
        monkeypatch.setattr(trainer, "time", fake)

    def test_by_minutes_is_planned_after_fifty_steps(self, corpus: Corpus, tmp_path: Path, clock: None) -> None:
        result = fit(tmp_path / "run", corpus, train=dict(max_steps=0, max_minutes=1.0))
        # 64 steps fill a minute, so 97 % of it holds 62.
        assert (result.step, result.reason) == (62, "step 62 of 62")
        assert records(tmp_path / "run", "validation")[-1]["lr"] == pytest.approx(0.05 * 0.01)

    @pytest.mark.parametrize(("slower", "steps"), [(1, 124), (4, 75)])
    def test_by_minutes_comes_with_the_learning_rate_down_on_a_machine_that_slows(
        self, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slower: int, steps: int
    ) -> None:
        """60 steps in 60/64 minutes; then, four times as slow, the remaining 0.97 * 2 - 60/64 minutes hold 15 or 16."""
        looks = itertools.count()
        fake = type(time)("time")
        fake.perf_counter = time.perf_counter  # type: ignore[attr-defined]
        fake.monotonic = lambda: 60 / 64 * ((n := next(looks)) + max(n - 60, 0) * (slower - 1))  # type: ignore[attr-defined]
        monkeypatch.setattr(trainer, "time", fake)
        result = fit(tmp_path / "run", corpus, train=dict(max_steps=0, max_minutes=2.0, log_every=1, validate_every=10_000))
        assert result.step == pytest.approx(steps, abs=2)
        assert result.reason == f"step {result.step} of {result.step}"
        rates = [record["lr"] for record in records(tmp_path / "run", "train")]
        assert rates[-1] < 0.1 * max(rates)

    def test_by_minutes_may_come_before_there_is_a_plan(self, corpus: Corpus, tmp_path: Path, clock: None) -> None:
        result = fit(tmp_path / "run", corpus, train=dict(max_steps=0, max_minutes=0.25))
        assert (result.step, result.reason) == (16, "0.25 minutes")

    def test_by_minutes_holds_for_a_number_of_steps_too(self, corpus: Corpus, tmp_path: Path, clock: None) -> None:
        result = fit(tmp_path / "run", corpus, train=dict(max_steps=500, max_minutes=0.25))
        assert (result.step, result.reason) == (16, "0.25 minutes")

    def test_by_minutes_counts_the_time_before_resuming(self, corpus: Corpus, tmp_path: Path, clock: None) -> None:
        fit(tmp_path / "run", corpus, train=dict(max_steps=500, max_minutes=0.25))
        result = fit(tmp_path / "run", corpus, resume=True, train=dict(max_steps=500, max_minutes=0.5))
        assert result.step == 32

    @pytest.mark.parametrize("minutes", [0.875, 1.5])
    def test_by_other_minutes_is_planned_anew_on_resuming(
        self, corpus: Corpus, tmp_path: Path, clock: None, minutes: float
    ) -> None:
        fit(tmp_path / "run", corpus, train=dict(max_steps=0, max_minutes=0.8125))
        result = fit(tmp_path / "run", corpus, resume=True, train=dict(max_steps=0, max_minutes=minutes, log_every=1))
        assert result.step == int(62.08 * minutes)
        # The learning rate follows the new plan from the first step on.
        rates = [record["lr"] for record in records(tmp_path / "run", "train") if record["step"] > 50]
        assert rates == sorted(rates, reverse=True)
        assert rates[0] < 0.01

    def test_in_earnest_keeps_within_its_minutes(self, corpus: Corpus, tmp_path: Path) -> None:
        began = time.monotonic()
        result = fit(tmp_path / "run", corpus, train=dict(max_steps=0, max_minutes=0.03, validate_every=10_000))
        assert time.monotonic() - began < 20
        assert result.reason != "step 0 of 0"
        assert result.step > 0

    @pytest.mark.parametrize(("patience", "ends", "best"), [(1, 15, 10), (2, 30, 20), (3, 35, 20), (0, 50, 45)])
    def test_by_patience_comes_after_so_many_validations_without_a_better_one(
        self, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, ends: int, best: int
    ) -> None:
        scripted, real = iter([-9.0, -8, -8.5, -7, -7.5, -7.2, -7, -7, -6, -6.5]), trainer.measure

        def measure(*arguments: Any, **options: Any) -> Bound:
            return dataclasses.replace(real(*arguments, **options), elbo=next(scripted))

        monkeypatch.setattr(trainer, "measure", measure)
        settings = dict(max_steps=50, validate_every=5, checkpoint_every=100, patience=patience)
        result = fit(tmp_path / "run", corpus, train=settings)
        assert result.step == ends
        assert result.reason == (f"no better validation in {patience}" if patience else "step 50 of 50")
        assert checkpoint(tmp_path / "run", "best").name == f"step-{best:08d}"
        assert checkpoint(tmp_path / "run").name == f"step-{ends:08d}"


class TestRefusals:
    def test_a_folder_that_is_not_empty(self, corpus: Corpus, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "precious.txt").write_text("mine")
        with pytest.raises(UserError, match="run: not empty"):
            fit(tmp_path / "run", corpus)
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious.txt"]

    def test_a_file_in_the_place_of_the_folder(self, corpus: Corpus, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("mine")
        with pytest.raises(UserError, match="run: cannot write"):
            fit(tmp_path / "run", corpus)

    def test_a_vocabulary_that_is_not_the_corpuss(self, corpus: Corpus, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"vocab_size 399: .* has 400 pieces"):
            fit(tmp_path / "run", corpus, model=dict(vocab_size=399))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("device", ["cuda:99", "tpu", "", "mps"])
    def test_a_device_that_is_not_there(self, corpus: Corpus, tmp_path: Path, device: str) -> None:
        with pytest.raises(ConfigError, match=f"device '{device}'"):
            fit(tmp_path / "run", corpus, train=dict(device=device))

    def test_a_full_disk(self, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("vrae.training.checkpoint.write_folder", full)
        with pytest.raises(UserError, match="cannot write a checkpoint: No space left on device"):
            fit(tmp_path / "run", corpus)


class TestDryRun:
    def test_leaves_its_own_folder_only_and_can_be_repeated(self, corpus: Corpus, tmp_path: Path) -> None:
        for _ in range(2):
            result = fit(tmp_path / "run", corpus, dry_run=True, **K2)
            assert (result.step, result.run) == (2, tmp_path / "run" / "dry-run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["dry-run"]
        assert [record["split"] for record in records(result.run)] == ["train", "train", "validation"]

    def test_does_not_stand_in_the_way_of_the_run(self, corpus: Corpus, tmp_path: Path) -> None:
        fit(tmp_path / "run", corpus, dry_run=True)
        assert fit(tmp_path / "run", corpus).step == 20
        fit(tmp_path / "run", corpus, dry_run=True)
        assert checkpoint(tmp_path / "run").name == "step-00000020"


class TestCommand:
    def arguments(self, corpus: Corpus, run: Path) -> list[str]:
        settings = dataclasses.asdict(run_config())
        given = [f"--{group}.{name}={value}" for group in settings for name, value in settings[group].items()]
        return ["train", "--data", str(corpus.path), "--out", str(run), "--quiet", *given]

    def test_ends_with_0_where_it_went_well(self, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(self.arguments(corpus, tmp_path / "run")) == 0
        assert "ended at step 20 of 20" in capsys.readouterr().out

    def test_says_which_model_is_used_where_the_last_is_not_the_best(
        self, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, bounds = trainer.measure, list[float]()

        def worse_each_time(*given: Any, **named: Any) -> Any:
            bound = real(*given, **named)
            bounds.append(100 + len(bounds))
            return dataclasses.replace(bound, elbo=-bounds[-1])

        monkeypatch.setattr(trainer, "measure", worse_each_time)
        assert main([*self.arguments(corpus, tmp_path / "run"), "--train.validate_every", "5"]) == 0
        assert len(bounds) == 4
        assert "best at step 5, 100.00: that model is the one that is used" in capsys.readouterr().out

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_ends_with_the_signals_code_after_saving(
        self, corpus: Corpus, tmp_path: Path, hook: Hook, number: signal.Signals, code: int
    ) -> None:
        hook(lambda at, terms, value: signal.raise_signal(number) if at == 3 else None)
        assert main(self.arguments(corpus, tmp_path / "run")) == code
        assert main([*self.arguments(corpus, tmp_path / "run"), "--resume"]) == 0
        assert state(tmp_path / "run")["step"] == 20

    def test_ends_with_3_where_it_diverged(self, corpus: Corpus, tmp_path: Path, hook: Hook) -> None:
        hook(nan_at(*range(1, 99)))
        assert main(self.arguments(corpus, tmp_path / "run")) == 3

    def test_ends_with_2_where_it_was_asked_for_nonsense(
        self, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "run").write_text("mine")
        assert main(self.arguments(corpus, tmp_path / "run")) == 2
        assert capsys.readouterr().err.count("\n") == 1
