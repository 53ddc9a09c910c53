"""Checkpoints: a model folder plus what training needs to go on exactly where it stood.

    RUN/checkpoints/step-00001234/   config.json model.safetensors tokenizer.model     a model folder, ready to load
                                     optimizer.safetensors trainer.json manifest.json   the rest of the state
                                     auxiliary.safetensors   networks that training alone needs, where there are any
    RUN/checkpoints/last, best       the names of two of them

A checkpoint appears under its name only when it is complete and on disk; then `best` and `last` are moved. There is no random
state to keep: all randomness is a function of the seed and the step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from vrae.config import shown
from vrae.corpus.tokenizer import Tokenizer
from vrae.distributed import first
from vrae.errors import ModelError
from vrae.files import first_sound, remove_folder, to_json, write_file, write_folder
from vrae.model.folder import CONFIG, TOKENIZER, WEIGHTS, fill, load_weights, read_tensors, to_files, weights
from vrae.model.vrae import VRAE

OPTIMIZER, AUXILIARY, STATE = "optimizer.safetensors", "auxiliary.safetensors", "trainer.json"
_KINDS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter; Muon has no squares
_MAX_STATE_BYTES = 2**24


class Restored(NamedTuple):
    """What was found."""

    path: Path
    state: dict[str, Any]  # trainer.json
    warnings: list[str]  # a line about each newer checkpoint: all are damaged and were passed over


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
        path = self.path(state["step"])
        files = {
            **to_files(model, tokenizer, {**info, "step": state["step"]}),
            OPTIMIZER: safetensors.torch.save(_optimizer_tensors(optimizer)),
            STATE: to_json(state),
        }
        if self.auxiliary is not None:
            files[AUXILIARY] = safetensors.torch.save(weights(self.auxiliary))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_folder(path, files)
        self._point(state)
        newest = [old for old in self.found() if old.name <= path.name]  # a later one is damaged: the run went back from it
        keep = {_name(state["best_step"]), *(old.name for old in newest[: self.keep_last])}
        for old in self.found():
            if old.name not in keep:
                remove_folder(old)
        return path

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is or will be."""
        return self.folder / _name(step)

    def found(self) -> list[Path]:
        """Complete checkpoints, newest first."""
        return sorted((p for p in self.folder.glob("step-*") if p.is_dir()), reverse=True)

    def restore(self, model: VRAE, optimizer: torch.optim.Optimizer) -> Restored:
        """Loads the newest sound checkpoint into `model` and `optimizer`; `best` and `last` become those of then.

        Raises:
            ModelError: there is none; each is named, with what is wrong with it. Or its files are as the manifest says and yet
                not what is saved here; the file is named, and the tensor.
        """
        auxiliary = () if self.auxiliary is None else (AUXILIARY,)
        path, damaged = first_sound(self.found(), (CONFIG, WEIGHTS, TOKENIZER, OPTIMIZER, STATE, *auxiliary))
        if path is None:
            raise ModelError(*damaged, f"{self.folder}: no sound checkpoint to resume from")
        state = _read_state(path)
        load_weights(model, path / WEIGHTS)
        if self.auxiliary is not None:
            load_weights(self.auxiliary, path / AUXILIARY)
        _restore_optimizer(optimizer, path / OPTIMIZER)
        self._point(state)
        return Restored(path, state, damaged)

    def _point(self, state: dict[str, Any]) -> None:
        """Moves `best` and `last`; a run that was killed between a checkpoint and this does it when it is resumed."""
        for pointer, step in (("best", state["best_step"]), ("last", state["step"])):
            path, name = self.folder / pointer, _name(step).encode()
            if first() and self.path(step).is_dir() and not (path.is_file() and path.read_bytes() == name):
                write_file(path, name)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _names(optimizer: torch.optim.Optimizer) -> list[str]:
    """The parameters' names in the order in which the optimiser's state counts them."""
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def _kinds(optimizer: torch.optim.Optimizer) -> list[tuple[str, ...]]:
    """What is kept of each parameter, in the same order."""
    return [_KINDS[:2] if group.get("gates") else _KINDS for group in optimizer.param_groups for _ in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = _names(optimizer)
    return {
        f"{names[place]}/{kind}": value.detach().cpu().contiguous()
        for place, values in optimizer.state_dict()["state"].items()
        for kind, value in values.items()
    }


def _read_state(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / STATE
    if path.stat().st_size > _MAX_STATE_BYTES:
        raise ModelError(f"{path}: larger than {_MAX_STATE_BYTES} bytes")
    try:
        state: dict[str, Any] = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON: {error!s:.100}") from None
    step, best = (state.get("step"), state.get("best_step")) if isinstance(state, dict) else (None, None)
    if type(step) is not int or type(best) is not int or checkpoint.name != _name(step) or best > step:
        raise ModelError(f"{path}: must hold an object, with the step of {checkpoint.name} and a best_step no later")
    return state


def _restore_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """A parameter that never had a gradient has no state; that of any other is whole."""
    names, kinds = _names(optimizer), _kinds(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    place_of = {f"{name}/{kind}": (place, kind) for place, name in enumerate(names) for kind in kinds[place]}
    stored, state = read_tensors(path), dict[int, dict[str, Tensor]]()
    if unknown := sorted(stored.keys() - place_of.keys()):
        raise ModelError(f"{path}: has unknown {shown(', '.join(unknown[:5]), 200)}")
    for key, value in stored.items():
        place, kind = place_of[key]
        like = torch.zeros(()) if kind == "step" else torch.zeros_like(parameters[place], device="cpu")
        fill(like, value, f"{path}: {key}")
        if kind != "exp_avg" and (like < 0).any():
            raise ModelError(f"{path}: {key} holds numbers below 0")
        state.setdefault(place, {})[kind] = like
    for place, values in state.items():
        if missing := [f"{names[place]}/{kind}" for kind in kinds[place] if kind not in values]:
            raise ModelError(f"{path}: lacks {', '.join(missing)}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
