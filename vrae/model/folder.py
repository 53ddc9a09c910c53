"""A model on disk: `config.json`, `model.safetensors`, `tokenizer.model`. Nothing in it can execute code."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vrae.config import ModelConfig, from_dict, shown
from vrae.corpus.tokenizer import Tokenizer
from vrae.errors import ConfigError, ModelError, meant
from vrae.files import to_json
from vrae.model.vrae import VRAE

FORMAT = 1
KEYS = ("format", "model", "run", "corpus", "step", "versions", "hardware", "validation")  # of config.json
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.model"
_MAX_CONFIG_BYTES = 2**20
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST = 1e4  # weight; trained ones are far below, and sums of products of such stay finite
_ALWAYS_BUILT = 2**24  # parameters of a model that is built before its file is known to have as many


class Loaded(NamedTuple):
    """A model with what belongs to it."""

    model: VRAE
    tokenizer: Tokenizer
    info: dict[str, Any]  # config.json as it stands: the run's settings, the corpus, the step, versions, figures


def to_files(model: VRAE, tokenizer: Tokenizer, info: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, bytes]:
    """The files of a model folder. `info` (JSON values) is stored with the architecture; `dtype`: of the weights."""
    config = {"format": FORMAT, "model": dataclasses.asdict(model.config), **info}
    return {
        CONFIG: to_json(config),
        WEIGHTS: safetensors.torch.save({name: value.to(dtype=dtype) for name, value in weights(model).items()}),
        TOKENIZER: tokenizer.model,
    }


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and running moments by name, each once: a tied output matrix is stored as the embedding that it is."""
    return {name: value.detach().cpu().contiguous() for name, value in _tensors(model).items()}


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def read(folder: str | Path, device: torch.device | str = "cpu") -> Loaded:
    """Reads a model folder.

    Raises:
        ModelError: something is missing or damaged, or does not fit together; the message names it.
    """
    folder = Path(folder)
    info = _read_config(folder / CONFIG)
    try:
        config = from_dict(ModelConfig, info.get("model"), str(folder / CONFIG))
    except ConfigError as error:
        raise ModelError(str(error)) from None
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if len(tokenizer) != config.vocab_size:
        raise ModelError(f"{folder}: the tokenizer has {len(tokenizer)} pieces, the model {config.vocab_size}")
    stored = read_tensors(folder / WEIGHTS)
    found, least = sum(tensor.numel() for tensor in stored.values()), _fewest_parameters(config)
    if least > max(found, _ALWAYS_BUILT):
        raise ModelError(f"{folder / WEIGHTS}: holds {found:,} numbers, the model of {CONFIG} has more than {least:,}")
    model = VRAE(config)
    _fill(model, stored, folder / WEIGHTS)
    return Loaded(model.to(device).eval(), tokenizer, info)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fills `model` from a safetensors file. Raises ModelError, naming the tensor, when anything does not fit."""
    _fill(model, read_tensors(path), path)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name, as they are. Raises ModelError where it is none."""
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise ModelError(f"{path}: not a safetensors file, or damaged: {shown(str(error), 200)}") from None


def fill(tensor: torch.Tensor, value: torch.Tensor, where: str) -> None:
    """Copies `value` into `tensor`. Raises ModelError unless it has its shape and holds finite floating-point numbers."""
    if value.dtype not in _DTYPES:
        raise ModelError(f"{where} must hold floating-point numbers of 16 to 64 bits. Got {value.dtype}")
    if value.shape != tensor.shape:
        raise ModelError(f"{where} must have shape {tuple(tensor.shape)}. Got {shown(str(tuple(value.shape)))}")
    tensor.copy_(value)
    if not torch.isfinite(tensor).all():
        raise ModelError(f"{where} holds values that are not finite numbers")


def _fill(model: nn.Module, stored: dict[str, torch.Tensor], path: Path) -> None:
    tensors = _tensors(model)
    for problem, names in (("lacks", tensors.keys() - stored.keys()), ("has unknown", stored.keys() - tensors.keys())):
        if names:
            raise ModelError(f"{path}: {problem} {shown(', '.join(sorted(names)[:5]), 200)}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            fill(tensor, stored[name], f"{path}: {name}")
            if tensor.numel() and tensor.abs().max() > _LARGEST:
                raise ModelError(f"{path}: {name} holds numbers beyond {_LARGEST:g}, with which sums may overflow")


def _fewest_parameters(config: ModelConfig) -> int:
    """All but some of a flow's, so that no memory is asked for on the word of a config.json alone."""
    with torch.device("meta"), _NothingDrawn():  # tensors without numbers
        plain = _tensors(VRAE(dataclasses.replace(config, flow_steps=0)))
    return sum(tensor.numel() for tensor in plain.values()) + config.flow_steps * config.hidden_size * config.latent_size


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_CONFIG_BYTES + 1)
        if len(text) > _MAX_CONFIG_BYTES:
            raise ModelError(f"{path}: larger than {_MAX_CONFIG_BYTES} bytes")
        info = json.loads(text)
    except OSError as error:
        raise ModelError(f"{path}: cannot read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON: {error}") from None
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        version = info.get("format") if isinstance(info, dict) else None
        raise ModelError(f"{path}: model format {reprlib.repr(version)}, this vrae reads {FORMAT}")
    if unknown := sorted(info.keys() - set(KEYS)):
        hint = meant(unknown[0], KEYS)
        raise ModelError(f"{path}: unknown keys {shown(', '.join(unknown), 200)}.{hint} Known: {', '.join(KEYS)}")
    return info


class _NothingDrawn(TorchFunctionMode):
    """Passes over the drawing of normal numbers, for which torch would load its compiler on the meta device: seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **(kwargs or {}))
