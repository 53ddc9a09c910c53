"""A model comes back from disk as it was, and whatever is wrong with its folder is named, without running any of it."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import random_windows, tiny_model

from vrae.config import ModelConfig
from vrae.corpus.batches import collate
from vrae.corpus.prepared import Corpus
from vrae.corpus.tokenizer import Tokenizer, train_tokenizer
from vrae.errors import ModelError
from vrae.model.folder import CONFIG, FORMAT, TOKENIZER, WEIGHTS, load_weights, read, to_files, weights
from vrae.model.vrae import VRAE

OPTIONS = [
    {"tied_output": True},
    {"tied_output": False},
    {"context_turns": 2, "speakers": True, "encoder_layers": 2, "decoder_layers": 2},
    {"latent_size": 0},
    {"latent_size": 0, "context_turns": 1, "bidirectional": False},
]


@pytest.fixture(scope="module")
def tokenizer(corpus: Corpus) -> Tokenizer:
    return corpus.tokenizer


def a_model(tokenizer: Tokenizer, **options: Any) -> VRAE:
    return tiny_model(vocab_size=len(tokenizer), **options).float()


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A sound folder, to be damaged."""
    for name, data in to_files(a_model(tokenizer), tokenizer, {"step": 7}).items():
        (tmp_path / name).write_bytes(data)
    assert read(tmp_path).info["step"] == 7
    return tmp_path


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / CONFIG).read_bytes())
    edit(config)
    (folder / CONFIG).write_text(json.dumps(config))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    edit(tensors)
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors))


# There and back


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_model_comes_back_bit_for_bit(options: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = a_model(tokenizer, **options)
    info = {"step": 12, "corpus": {"name": "naïve ☕"}}
    for name, data in to_files(model, tokenizer, info).items():
        (tmp_path / name).write_bytes(data)
    loaded = read(tmp_path)
    assert loaded.info == {"format": FORMAT, "model": dataclasses.asdict(model.config), **info}
    assert loaded.tokenizer.model == tokenizer.model
    assert loaded.model.config == model.config
    assert not loaded.model.training
    found = dict(loaded.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(found[name], parameter), name

    context_turns = model.config.context_turns
    batch = collate(random_windows(5, context_turns, len(tokenizer)), context_turns)
    noise_BZ = torch.zeros(5, model.config.latent_size)
    assert torch.equal(loaded.model(batch, noise_BZ).elbo_B, model(batch, noise_BZ).elbo_B)


def test_the_same_model_gives_the_same_bytes(tokenizer: Tokenizer) -> None:
    assert to_files(a_model(tokenizer), tokenizer, {}) == to_files(a_model(tokenizer), tokenizer, {})


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_matrix_is_stored_once_and_is_tied_again(tied: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = a_model(tokenizer, tied_output=tied)
    E, V = model.config.embedding_size, model.config.vocab_size
    assert sum(tensor.shape == (V, E) for tensor in weights(model).values()) == (1 if tied else 2)
    for name, data in to_files(model, tokenizer, {}).items():
        (tmp_path / name).write_bytes(data)
    decoder = read(tmp_path).model.decoder
    assert (decoder.out.weight is decoder.embedding.weight) == tied


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_converted(dtype: torch.dtype, folder: Path) -> None:
    stored = {name: value.to(dtype) for name, value in weights(read(folder).model).items()}
    edit_weights(folder, lambda tensors: tensors.update(stored))
    for name, parameter in read(folder).model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, stored[name].float()), name


def test_the_weights_of_a_responder_start_a_vhred(tokenizer: Tokenizer, tmp_path: Path) -> None:
    responder, vhred = a_model(tokenizer, context_turns=1), a_model(tokenizer, context_turns=3, seed=1)
    (tmp_path / WEIGHTS).write_bytes(to_files(responder, tokenizer, {})[WEIGHTS])
    load_weights(vhred, tmp_path / WEIGHTS)
    for name, parameter in vhred.named_parameters():
        assert torch.equal(parameter, dict(responder.named_parameters())[name]), name


# Damage


def refused(folder: Path, *words: str) -> None:
    """Asserts that the folder cannot be read, with a message that has all the words."""
    with pytest.raises(ModelError) as error:
        read(folder)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, TOKENIZER])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, str(folder / name))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, TOKENIZER])
def test_a_folder_where_a_file_should_be_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, str(folder / name))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, TOKENIZER])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_named(folder: Path, name: str, share: float) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    refused(folder, str(folder / name))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", str(tmp_path / "nothing"))


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.evidence),)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, TOKENIZER])
@pytest.mark.parametrize("save", [pickle.dump, torch.save])
def test_a_pickle_is_refused_and_not_run(folder: Path, name: str, save: Callable[..., None]) -> None:
    evidence = folder / "evidence"
    with open(folder / name, "wb") as file:
        save(Payload(evidence), file)
    refused(folder, str(folder / name))
    assert not evidence.exists()


@pytest.mark.parametrize(
    "text",
    [b"", b"junk", b"{", b"[]", b"3", b"null", b"[" * 100_000, b'{"format": ' + b"[" * 100_000, b"\xff\xfe\x00", b"9" * 5000],
    ids=lambda text: repr(text[:16]),
)  # fmt: skip
def test_a_config_that_is_no_object_is_refused(folder: Path, text: bytes) -> None:
    (folder / CONFIG).write_bytes(text)
    refused(folder, str(folder / CONFIG))


def test_a_config_of_absurd_size_is_refused_before_it_is_parsed(folder: Path) -> None:
    with open(folder / CONFIG, "ab") as file:
        file.truncate(2**30)
    refused(folder, str(folder / CONFIG), "larger than")


@pytest.mark.parametrize("version", [0, FORMAT + 1, "1", None, [1]])
def test_another_format_is_refused_with_both_versions(folder: Path, version: object) -> None:
    edit_config(folder, lambda config: config.update(format=version))
    refused(folder, str(folder / CONFIG), repr(version), f"reads {FORMAT}")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden_sise": 3}, ["unknown settings hidden_sise"]),
        ({"hidden_size": "6"}, ["hidden_size must be int", "'6'"]),
        ({"hidden_size": -6}, ["hidden_size must be in", "-6"]),
        ({"hidden_size": 10**30}, ["hidden_size must be in", "1000000000"]),
        ({"encoder_layers": 10**9}, ["encoder_layers must be in", "1000000000"]),
        ({"dropout": float("nan")}, ["dropout must be in", "nan"]),
        ({"speakers": None}, ["speakers must be bool", "None"]),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_named(folder: Path, settings: dict[str, Any], words: list[str]) -> None:
    edit_config(folder, lambda config: config["model"].update(settings))
    refused(folder, str(folder / CONFIG), *words)


@pytest.mark.parametrize("model", [None, [], "VRAE", {}])
def test_a_config_without_an_architecture_is_refused(folder: Path, model: object) -> None:
    edit_config(folder, lambda config: config.update(model=model))
    refused(folder, str(folder))


@pytest.mark.parametrize("size", ["hidden_size", "embedding_size", "context_size", "latent_size"])
def test_a_config_that_asks_for_more_memory_than_there_is_is_refused(folder: Path, size: str) -> None:
    """Before any of it is taken: tens of gigabytes could be had where memory is overcommitted."""
    edit_config(folder, lambda config: config["model"].update({"hidden_size": 4096, "context_turns": 1, size: 65_536}))
    refused(folder, str(folder / WEIGHTS), "numbers")


def test_a_tokenizer_of_another_size_is_refused_with_both_sizes(folder: Path, dialogues: list[list[str]]) -> None:
    (folder / TOKENIZER).write_bytes(train_tokenizer([turn for turns in dialogues for turn in turns], 380))
    refused(folder, str(folder), "380 pieces", "the model 400")


@pytest.mark.parametrize("name", weights(VRAE(ModelConfig(vocab_size=5, context_turns=0))))
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    edit_weights(folder, lambda tensors: tensors.pop(name))
    refused(folder, str(folder / WEIGHTS), "lacks", name)


def test_a_tensor_too_many_is_named(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update(backdoor=torch.zeros(1)))
    refused(folder, str(folder / WEIGHTS), "unknown backdoor")


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"decoder.project.weight": torch.zeros(6, 5)}))
    refused(folder, str(folder / WEIGHTS), "decoder.project.weight must have shape (5, 6). Got (6, 5)")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_named(folder: Path, value: float) -> None:
    edit_weights(folder, lambda tensors: tensors["decoder.project.weight"][2].fill_(value))
    refused(folder, str(folder / WEIGHTS), "decoder.project.weight", "finite")


def test_a_number_too_large_for_single_precision_is_named(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"decoder.project.bias": torch.full((5,), 1e300, dtype=torch.float64)}))
    refused(folder, str(folder / WEIGHTS), "decoder.project.bias", "finite")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_a_tensor_of_another_kind_of_number_is_named(folder: Path, dtype: torch.dtype) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"decoder.project.bias": torch.zeros(5).to(dtype)}))
    refused(folder, str(folder / WEIGHTS), "decoder.project.bias", re.sub(".*\\.", "", str(dtype)))


def test_a_message_stays_short_whatever_the_names_in_a_file(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({f"{i}" * 2000: torch.zeros(1) for i in range(100)}))
    with pytest.raises(ModelError) as error:
        read(folder)
    assert len(str(error.value)) < 500


def test_a_message_can_be_printed_whatever_the_names_in_a_file(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"\x1b[2J\u202e": torch.zeros(1)}))
    with pytest.raises(ModelError, match=r"unknown \\x1b\[2J\\u202e") as error:
        read(folder)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("value", [3e38, -1.1e4])
def test_a_number_with_which_sums_may_overflow_is_named(folder: Path, value: float) -> None:
    edit_weights(folder, lambda tensors: tensors["decoder.project.weight"][1:2, 1:2].fill_(value))
    refused(folder, str(folder / WEIGHTS), "decoder.project.weight", "beyond 10000")


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder_layers": 32, "hidden_size": 1000, "bidirectional": False},
        {"context_turns": 1, "prior": "mixture", "prior_components": 1000, "latent_size": 20_000},
        {"flow_steps": 64, "latent_size": 60_000},
    ],
    ids=["layers", "mixture", "flow"],
)
def test_a_config_that_asks_for_more_memory_by_any_part_is_refused(folder: Path, settings: dict[str, Any]) -> None:
    edit_config(folder, lambda config: config["model"].update(settings))
    refused(folder, str(folder / WEIGHTS), "numbers, the model of config.json has more than")
