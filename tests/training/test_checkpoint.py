"""Checkpoints: what is restored is what was saved, bit for bit; damage is named and passed over; nothing can execute."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import random_windows, tiny_model

import vrae
from vrae.config import TrainConfig
from vrae.corpus.batches import collate
from vrae.corpus.prepared import Corpus
from vrae.corpus.tokenizer import Tokenizer
from vrae.errors import ModelError
from vrae.files import MANIFEST, write_folder
from vrae.model.folder import read
from vrae.model.vrae import VRAE
from vrae.training.checkpoint import OPTIMIZER, STATE, Checkpoints
from vrae.training.optimizer import make_optimizer

FILES = {"config.json", "model.safetensors", "tokenizer.model", "optimizer.safetensors", "trainer.json", "manifest.json"}
INFO = {"corpus": {"name": "x"}}
WINDOWS = random_windows(40, 2, 400)


def model_and_optimizer(seed: int = 0) -> tuple[VRAE, torch.optim.Optimizer]:
    model = tiny_model(seed, context_turns=2, vocab_size=400).float().train()
    return model, make_optimizer(model, None, TrainConfig(learning_rate=0.01, weight_decay=0.1), "fp32")


def learn(model: VRAE, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Steps `first` to `last`; in step 1 no window has a context, so the context GRU gets no gradient."""
    for step in range(first, last):
        windows = [window for window in WINDOWS if not window.context] if step == 1 else WINDOWS[step * 5 : step * 5 + 5]
        optimizer.zero_grad(set_to_none=True)
        noise_BZ = torch.randn(len(windows), 4, generator=torch.Generator().manual_seed(step))
        (-model(collate(windows, 2), noise_BZ).elbo_B.mean()).backward()
        optimizer.step()


def tensors(model: VRAE, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Weights and the optimiser's state, by name."""
    found = dict(model.named_parameters())
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    for place, state in optimizer.state_dict()["state"].items():
        found |= {f"{names[place]}/{kind}": value for kind, value in state.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


@pytest.fixture
def save(tmp_path: Path, corpus: Corpus) -> Callable[..., Path]:
    """Saves a checkpoint of a fresh model, or of the one given."""

    def save(step: int, best: int = 0, keep_last: int = 1, pair: tuple[VRAE, torch.optim.Optimizer] | None = None) -> Path:
        state = {"step": step, "best_step": best, "note": "naïve", "best": 0.1 + 0.2}
        return Checkpoints(tmp_path, keep_last).save(
            *(pair or model_and_optimizer()), corpus.tokenizer, {"corpus": {"name": "x"}}, state
        )

    return save


def names(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


def pointer(run: Path, name: str) -> str:
    return (run / "checkpoints" / name).read_text()


class TestRoundTrip:
    def test_restores_weights_optimiser_and_state_bit_for_bit(self, save: Callable[..., Path], tmp_path: Path) -> None:
        model, optimizer = model_and_optimizer()
        learn(model, optimizer, 0, 3)
        path = save(3, pair=(model, optimizer))
        other, its_optimizer = model_and_optimizer(seed=1)
        restored = Checkpoints(tmp_path, 1).restore(other, its_optimizer)
        assert_same_bits(tensors(model, optimizer), tensors(other, its_optimizer))
        assert restored == (path, {"step": 3, "best_step": 0, "note": "naïve", "best": 0.1 + 0.2}, [])

    def test_a_step_after_restoring_is_the_step_that_would_have_been(self, save: Callable[..., Path], tmp_path: Path) -> None:
        model, optimizer = model_and_optimizer()
        learn(model, optimizer, 0, 3)
        save(3, pair=(model, optimizer))
        learn(model, optimizer, 3, 6)
        other, its_optimizer = model_and_optimizer(seed=1)
        Checkpoints(tmp_path, 1).restore(other, its_optimizer)
        learn(other, its_optimizer, 3, 6)
        assert_same_bits(tensors(model, optimizer), tensors(other, its_optimizer))

    @pytest.mark.parametrize("steps", [1, 2])
    def test_keeps_the_step_counter_of_each_parameter(self, save: Callable[..., Path], tmp_path: Path, steps: int) -> None:
        # A parameter that got no gradient in a step has taken one step fewer than the others.
        model, optimizer = model_and_optimizer()
        learn(model, optimizer, 0, steps)
        save(steps, pair=(model, optimizer))
        other, its_optimizer = model_and_optimizer(seed=1)
        Checkpoints(tmp_path, 1).restore(other, its_optimizer)
        found = tensors(other, its_optimizer)
        assert found["decoder.out.bias/step"] == steps
        assert found["context_encoder.gru.weight_hh_l0/step"] == 1

    def test_before_the_first_step_has_an_empty_optimiser(self, save: Callable[..., Path], tmp_path: Path) -> None:
        save(0)
        pair = model_and_optimizer(seed=1)
        Checkpoints(tmp_path, 1).restore(*pair)
        assert pair[1].state_dict()["state"] == {}

    def test_leaves_settings_of_the_optimiser_to_the_run(self, save: Callable[..., Path], tmp_path: Path) -> None:
        model, optimizer = model_and_optimizer()
        learn(model, optimizer, 0, 1)
        save(1, pair=(model, optimizer))
        other, its_optimizer = model_and_optimizer(seed=1)
        for group in its_optimizer.param_groups:
            group["lr"] = 0.5
        Checkpoints(tmp_path, 1).restore(other, its_optimizer)
        assert [(group["lr"], group["weight_decay"]) for group in its_optimizer.param_groups] == [
            (0.5, 0.1),
            (0.5, 0.1),
            (0.5, 0.0),
        ]

    def test_is_a_model_folder(self, save: Callable[..., Path], corpus: Corpus) -> None:
        model, optimizer = model_and_optimizer()
        loaded = read(save(7, pair=(model, optimizer)))
        assert {key: loaded.info[key] for key in ("corpus", "step")} == {**INFO, "step": 7}
        assert loaded.tokenizer.sha256 == corpus.tokenizer.sha256
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.model.parameters(), strict=True))


class TestKeeping:
    @pytest.mark.parametrize(
        ("keep_last", "best", "kept"),
        [
            (1, {3: 3}, {"step-00000003", "step-00000005"}),
            (2, {1: 1}, {"step-00000001", "step-00000004", "step-00000005"}),
            (2, {1: 1, 4: 4}, {"step-00000004", "step-00000005"}),
            (1, {5: 5}, {"step-00000005"}),
            (9, {}, {f"step-0000000{step}" for step in range(1, 6)}),
        ],
    )
    def test_the_newest_and_the_best_stay(
        self, save: Callable[..., Path], tmp_path: Path, keep_last: int, best: dict[int, int], kept: set[str]
    ) -> None:
        for step in range(1, 6):
            save(step, max((b for b in best if b <= step), default=-1), keep_last)
        assert names(tmp_path) == kept | {"last"} | ({"best"} if best else set())
        assert pointer(tmp_path, "last") == "step-00000005"
        if best:
            assert pointer(tmp_path, "best") == f"step-{max(best):08d}"

    def test_a_step_saved_again_replaces_the_first(self, save: Callable[..., Path], tmp_path: Path) -> None:
        save(4, pair=model_and_optimizer(0))
        save(4, pair=model_and_optimizer(1))
        pair = model_and_optimizer(2)
        Checkpoints(tmp_path, 1).restore(*pair)
        assert_same_bits(tensors(*pair), tensors(*model_and_optimizer(1)))

    def test_an_older_one_is_whole_or_gone(
        self, save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(*arguments: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        save(1)
        monkeypatch.setattr("shutil.rmtree", lambda path, **_: path.name.startswith(".step-00000001") and killed())
        with pytest.raises(KeyboardInterrupt):
            save(2)
        assert {name for name in names(tmp_path) if not name.startswith(".")} == {"step-00000002", "last"}

    def test_a_kill_before_the_pointers_moved_is_mended_by_the_next(self, save: Callable[..., Path], tmp_path: Path) -> None:
        save(1, best=1)
        save(2, best=2)
        for name in ("best", "last"):
            (tmp_path / "checkpoints" / name).write_text("step-00000001")
        Checkpoints(tmp_path, 1).restore(*model_and_optimizer())
        assert pointer(tmp_path, "best") == pointer(tmp_path, "last") == "step-00000002"

    def test_going_back_from_a_damaged_one_forgets_it(self, save: Callable[..., Path], tmp_path: Path) -> None:
        for step, best in ((1, 1), (2, 1), (4, 4)):
            save(step, best, keep_last=3)
        truncate(tmp_path / "checkpoints" / "step-00000004" / STATE)
        restored = Checkpoints(tmp_path, 3).restore(*model_and_optimizer())
        assert restored.state["step"] == 2
        assert (pointer(tmp_path, "best"), pointer(tmp_path, "last")) == ("step-00000001", "step-00000002")
        save(3, best=3, keep_last=2)  # the damaged one is none of the two that are kept
        assert names(tmp_path) == {"step-00000002", "step-00000003", "best", "last"}

    @pytest.mark.parametrize("call", range(1, 11))
    def test_a_full_disk_while_saving_leaves_the_one_before_or_the_new_one_whole(
        self, save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
    ) -> None:
        # Six files and their folder are synced before the checkpoint gets its name.
        save(1)
        count = iter(range(1, 99))

        def fsync(descriptor: int) -> None:
            if next(count) == call:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", fsync)
        with pytest.raises(OSError, match="No space"):
            save(2)
        monkeypatch.undo()
        restored = Checkpoints(tmp_path, 1).restore(*model_and_optimizer())
        assert (restored.state["step"], restored.warnings) == (1 if call <= 7 else 2, [])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


class TestDamage:
    @pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=["truncated", "flipped", "missing"])
    @pytest.mark.parametrize("name", sorted(FILES))
    def test_of_the_newest_is_named_and_the_one_before_is_used(
        self, save: Callable[..., Path], tmp_path: Path, name: str, damage: Callable[[Path], None]
    ) -> None:
        save(1, keep_last=2)
        newest = save(2, keep_last=2)
        damage(newest / name)
        restored = Checkpoints(tmp_path, 2).restore(*model_and_optimizer(seed=1))
        assert restored.state["step"] == 1
        [warning] = restored.warnings
        assert str(newest) in warning
        # a manifest with another digit in it accuses the file that it describes
        assert name in warning or name == "manifest.json"

    def test_of_all_of_them_names_each(self, save: Callable[..., Path], tmp_path: Path) -> None:
        for path in (save(1, keep_last=2), save(2, keep_last=2)):
            flip(path / "model.safetensors")
        with pytest.raises(ModelError, match=r"(?s)step-00000002.*step-00000001.*no sound checkpoint"):
            Checkpoints(tmp_path, 2).restore(*model_and_optimizer())

    def test_or_absence_is_a_model_error(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no sound checkpoint to resume from"):
            Checkpoints(tmp_path, 1).restore(*model_and_optimizer())

    def test_leaves_the_model_alone_when_nothing_is_sound(self, save: Callable[..., Path], tmp_path: Path) -> None:
        truncate(save(1) / OPTIMIZER)
        pair = model_and_optimizer(seed=1)
        with pytest.raises(ModelError):
            Checkpoints(tmp_path, 1).restore(*pair)
        assert_same_bits(tensors(*pair), tensors(*model_and_optimizer(seed=1)))


def replace(path: Path, **given: bytes) -> None:
    """Puts other contents into a checkpoint, under a manifest that fits them."""
    names = {"state": STATE, "optimizer": OPTIMIZER}
    files = {file.name: file.read_bytes() for file in path.iterdir() if file.name != MANIFEST}
    write_folder(path, {**files, **{names[name]: data for name, data in given.items()}})


class TestForeignContents:
    """A manifest made for them does not make strange files a checkpoint."""

    @pytest.mark.parametrize(
        "state",
        [
            b"",
            b"[]",
            b"null",
            b"{}",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"step": ' + b"1" * 5000 + b', "best_step": 0}',
            b'{"step": 3, "best_step": 0' + b" " * 2**24 + b"}",
            b'{"step": 2, "best_step": 0}',
            b'{"step": -3, "best_step": -4}',
            b'{"step": 3}',
            b'{"step": 3.0, "best_step": 0}',
            b'{"step": true, "best_step": 0}',
            b'{"step": "3", "best_step": 0}',
            b'{"step": 3, "best_step": null}',
            b'{"step": 3, "best_step": 4}',
            b'{"step": 3, "best_step": [[]]}',
        ],
        ids=lambda state: repr(state[:40]),
    )
    def test_of_the_state_are_refused_before_anything_changes(
        self, save: Callable[..., Path], tmp_path: Path, state: bytes
    ) -> None:
        path = save(3, pair=model_and_optimizer())
        replace(path, state=state)
        pair = model_and_optimizer(seed=1)
        with pytest.raises(ModelError, match=re.escape(f"{path / STATE}: ")) as caught:
            Checkpoints(tmp_path, 1).restore(*pair)
        assert len(str(caught.value)) < 400
        assert "\n" not in str(caught.value)
        assert_same_bits(tensors(*pair), tensors(*model_and_optimizer(seed=1)))
        assert pointer(tmp_path, "last") == "step-00000003"

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"decoder.out.bias/step": None}, "lacks decoder.out.bias/step"),
            ({"decoder.out.bias/step": None, "decoder.out.bias/exp_avg_sq": None}, "lacks .*step, .*exp_avg_sq"),
            ({"decoder.out.bias/max_exp_avg_sq": torch.zeros(400)}, "has unknown decoder.out.bias/max_exp_avg_sq"),
            ({"decoder.project.weight/exp_avg": None}, "lacks decoder.project.weight/exp_avg"),
            ({"decoder.project.weight/exp_avg_sq": torch.zeros(5, 6)}, "has unknown decoder.project.weight/exp_avg_sq"),
            ({"decoder.out.gain/exp_avg": torch.zeros(400)}, "has unknown decoder.out.gain/exp_avg"),
            ({"exp_avg": torch.zeros(1)}, "has unknown exp_avg"),
            ({"": torch.zeros(1)}, "has unknown"),
            ({"\x1b[2J" * 3: torch.zeros(1)}, r"has unknown \\x1b\[2J"),
            (
                {"decoder.out.bias/exp_avg": torch.zeros(399)},
                r"decoder.out.bias/exp_avg must have shape \(400,\). Got \(399,\)",
            ),
            ({"decoder.out.bias/exp_avg": torch.zeros(400, 1)}, r"must have shape \(400,\). Got \(400, 1\)"),
            ({"decoder.out.bias/exp_avg": torch.zeros(())}, r"must have shape \(400,\). Got \(\)"),
            ({"decoder.out.bias/step": torch.zeros(1)}, r"decoder.out.bias/step must have shape \(\). Got \(1,\)"),
            (
                {"decoder.out.bias/step": torch.tensor(3)},
                "decoder.out.bias/step must hold floating-point numbers .*torch.int64",
            ),
            ({"decoder.out.bias/exp_avg": torch.zeros(400, dtype=torch.complex64)}, "must hold floating-point numbers"),
            ({"decoder.out.bias/exp_avg": torch.full((400,), torch.nan)}, "decoder.out.bias/exp_avg holds values that are not"),
            ({"decoder.out.bias/exp_avg_sq": torch.full((400,), torch.inf)}, "exp_avg_sq holds values that are not finite"),
            ({"decoder.out.bias/exp_avg": torch.full((400,), 1e300, dtype=torch.float64)}, "exp_avg holds values that are not"),
            ({"decoder.out.bias/exp_avg_sq": torch.full((400,), -1e-9)}, "decoder.out.bias/exp_avg_sq holds numbers below 0"),
            ({"decoder.out.bias/step": torch.tensor(-1.0)}, "decoder.out.bias/step holds numbers below 0"),
        ],
        ids=lambda value: ascii(value)[:40],
    )
    def test_of_the_optimiser_are_named(
        self, save: Callable[..., Path], tmp_path: Path, change: dict[str, torch.Tensor | None], problem: str
    ) -> None:
        pair = model_and_optimizer()
        learn(*pair, 0, 3)
        path = save(3, pair=pair)
        stored = {**safetensors.torch.load((path / OPTIMIZER).read_bytes()), **change}
        kept = {name: value for name, value in stored.items() if value is not None}
        replace(path, optimizer=safetensors.torch.save(kept))
        other, optimizer = model_and_optimizer(seed=1)
        with pytest.raises(ModelError, match=re.escape(f"{path / OPTIMIZER}: ") + ".*" + problem):
            Checkpoints(tmp_path, 1).restore(other, optimizer)
        assert optimizer.state_dict()["state"] == {}

    @pytest.mark.parametrize("data", [b"", b"no tensors", b"\xff" * 100, b"\x80\x04\x95"], ids=ascii)
    def test_that_are_no_tensors_are_refused(self, save: Callable[..., Path], tmp_path: Path, data: bytes) -> None:
        path = save(3)
        replace(path, optimizer=data)
        with pytest.raises(ModelError, match=re.escape(f"{path / OPTIMIZER}: not a safetensors file")):
            Checkpoints(tmp_path, 1).restore(*model_and_optimizer())

    def test_what_is_restored_does_not_change_with_the_file(self, save: Callable[..., Path], tmp_path: Path) -> None:
        """And the file not with training: the state is no view of it."""
        pair = model_and_optimizer()
        learn(*pair, 0, 3)
        path = save(3, pair=pair)
        before = (path / OPTIMIZER).read_bytes()
        other = model_and_optimizer(seed=1)
        Checkpoints(tmp_path, 1).restore(*other)
        learn(*other, 3, 4)
        assert (path / OPTIMIZER).read_bytes() == before
        restored = tensors(*other)
        (path / OPTIMIZER).write_bytes(bytes(len(before)))
        assert_same_bits(tensors(*other), restored)


class TestNothingExecutes:
    def test_every_file_is_json_safetensors_or_sentencepiece(self, save: Callable[..., Path]) -> None:
        path = save(1)
        assert {file.name for file in path.iterdir()} == FILES
        for file in path.iterdir():
            if file.suffix == ".json":
                json.loads(file.read_bytes())
            elif file.suffix == ".safetensors":
                safetensors.torch.load(file.read_bytes())
            else:
                assert len(Tokenizer(file.read_bytes())) == 400

    def test_no_pickle_is_made_or_read(
        self, save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: Any, **options: Any) -> None:
            raise AssertionError("pickle")

        for owner, name in ((torch, "load"), (torch, "save"), (pickle, "dumps"), (pickle, "loads"), (pickle, "Unpickler")):
            monkeypatch.setattr(owner, name, refuse)
        read(save(1))
        Checkpoints(tmp_path, 1).restore(*model_and_optimizer())

    def test_no_source_file_of_the_package_asks_for_it(self) -> None:
        asked = re.compile(r"import pickle|(?<!safetensors\.)torch\.(load|save)\(|allow_pickle=True|(?<!\.)\b(eval|exec)\(")
        for source in Path(vrae.__file__).parent.rglob("*.py"):
            assert not asked.search(source.read_text(encoding="utf-8")), source

    def test_the_state_is_json_that_people_can_read(self, save: Callable[..., Path]) -> None:
        text = (save(1) / STATE).read_text(encoding="utf-8")
        assert '"note": "naïve"' in text
        assert json.loads(text)["best"] == 0.1 + 0.2
