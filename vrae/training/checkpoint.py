"""Checkpoints: a model folder plus what training needs to go on exactly where it stood.

    RUN/checkpoints/step-00001234/   config.json model.safetensors tokenizer.model     a model folder, ready to load
                                     optimizer.safetensors trainer.json manifest.json   the rest of the state
                                     auxiliary.safetensors   networks that training alone needs, where there are any
    RUN/checkpoints/last, best       the names of two of them

A checkpoint appears under its name only when it is complete and on disk; then `last` is moved. There is no random state to
keep: all randomness is a function of the seed and the step.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from vrae.corpus.tokenizer import Tokenizer
from vrae.errors import ModelError
from vrae.files import check_folder, to_json, write_file, write_folder
from vrae.model.folder import WEIGHTS, load_weights, to_files, weights
from vrae.model.vrae import VRAE

OPTIMIZER, AUXILIARY, STATE = "optimizer.safetensors", "auxiliary.safetensors", "trainer.json"


class Restored(NamedTuple):
    """What was found."""

    path: Path
    state: dict[str, Any]  # trainer.json
    warnings: list[str]  # damaged checkpoints that were passed over


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: the run's folder.
        keep_last: how many to keep besides the best.
        auxiliary: what is trained beside the model and is no part of it; None: nothing.
    """

    def __init__(self, run: Path, keep_last: int, auxiliary: nn.Module | None = None) -> None:
        self.folder, self.keep_last, self.auxiliary = run / "checkpoints", keep_last, auxiliary

    def save(
        self,
        model: VRAE,
        optimizer: torch.optim.Optimizer,
        tokenizer: Tokenizer,
        info: dict[str, Any],
        state: dict[str, Any],
    ) -> Path:
        """Writes the checkpoint of `state["step"]` and moves the pointers; `best` where state["best_step"] is this step."""
        path = self.folder / f"step-{state['step']:08d}"
        files = {
            **to_files(model, tokenizer, {**info, "step": state["step"]}),
            OPTIMIZER: safetensors.torch.save(_optimizer_tensors(optimizer)),
            STATE: to_json(state),
        }
        if self.auxiliary is not None:
            files[AUXILIARY] = safetensors.torch.save(weights(self.auxiliary))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_folder(path, files)
        if state["best_step"] == state["step"]:
            write_file(self.folder / "best", path.name.encode())
        write_file(self.folder / "last", path.name.encode())
        keep = {path.name, self._pointer("best"), *(old.name for old in self.found()[: self.keep_last])}
        for old in self.found():
            if old.name not in keep:
                shutil.rmtree(old)
        for unfinished in self.folder.glob(".step-*"):  # left by a run that was killed while it saved
            shutil.rmtree(unfinished, ignore_errors=True)
        return path

    def found(self) -> list[Path]:
        """Complete checkpoints, newest first."""
        return sorted((p for p in self.folder.glob("step-*") if p.is_dir()), reverse=True)

    def restore(self, model: VRAE, optimizer: torch.optim.Optimizer) -> Restored:
        """Loads the newest sound checkpoint into `model` and `optimizer`.

        Raises:
            ModelError: there is none.
        """
        warnings = []
        for path in self.found():
            if problem := check_folder(path):
                warnings.append(f"{path}: damaged ({problem}); going back to the one before")
                continue
            state = json.loads((path / STATE).read_bytes())
            load_weights(model, path / WEIGHTS)
            if self.auxiliary is not None:
                load_weights(self.auxiliary, path / AUXILIARY)
            tensors = safetensors.torch.load((path / OPTIMIZER).read_bytes())
            _restore_optimizer(optimizer, tensors)
            return Restored(path, state, warnings)
        raise ModelError("\n".join([*warnings, f"{self.folder}: no sound checkpoint to resume from"]))

    def _pointer(self, name: str) -> str:
        pointer = self.folder / name
        return pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""


def _names(optimizer: torch.optim.Optimizer) -> list[str]:
    """The parameters' names in the order in which the optimiser's state counts them."""
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = _names(optimizer)
    return {
        f"{names[place]}/{kind}": value.detach().cpu().contiguous()
        for place, values in optimizer.state_dict()["state"].items()
        for kind, value in values.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    place_of = {name: place for place, name in enumerate(_names(optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, kind = key.rpartition("/")
        state.setdefault(place_of[name], {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
