"""Settings: what is refused, with the name and the value; that each is documented and survives JSON."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from typing import Any

import pytest

from vrae.config import (
    BatchConfig,
    CleaningConfig,
    DecodingConfig,
    EvaluateConfig,
    ModelConfig,
    ObjectiveConfig,
    PrepareConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
    from_dict,
)
from vrae.errors import ConfigError

CLASSES = [
    SourceConfig,
    CleaningConfig,
    PrepareConfig,
    ModelConfig,
    BatchConfig,
    ObjectiveConfig,
    TrainConfig,
    RunConfig,
    DecodingConfig,
]
NAN = float("nan")

# Of each setting with a range: values just outside, and the outermost ones inside.
RANGES: dict[type[Any], dict[str, tuple[list[Any], list[Any]]]] = {
    CleaningConfig: {
        "max_repeats": ([-1, 1001], [0, 1000]),
        "min_turns": ([0], [1]),
        "spam_messages": ([-1], [0]),
        "spam_distinct": ([-0.1, 1.1, NAN], [0.0, 1.0]),
    },
    PrepareConfig: {
        "vocab_size": ([299, 65_537], [300, 65_536]),
        "tokenizer_turns": ([0], [1]),
        "num_proc": ([0], [1]),
        "validation_percent": ([-1, 51], [0, 50]),
        "test_percent": ([-1, 51], [0, 50]),
    },
    ModelConfig: {
        "vocab_size": ([-1, 65_537], [0, 65_536]),
        "context_turns": ([-1, 1001], [0, 1000]),
        "latent_size": ([-1, 65_537], [0, 65_536]),
        "embedding_size": ([0, 65_537], [1, 65_536]),
        "hidden_size": ([0, 65_537, 7], [2, 65_536]),
        "context_size": ([0, 65_537], [1, 65_536]),
        "encoder_layers": ([0, 33], [1, 32]),
        "decoder_layers": ([0, 33], [1, 32]),
        "dropout": ([-0.1, 1.0, NAN], [0.0, 0.99]),
        "prior_components": ([0, 1001], [1, 1000]),
        "flow_steps": ([-1, 65], [0, 64]),
        "batch_norm_scale": ([-0.1, 100.1, NAN], [0.0, 100.0]),
    },
    BatchConfig: {
        "tokens": ([0], [1]),
        "max_turn_tokens": ([0], [1]),
        "segment_turns": ([0], [1]),
        "context_dropout": ([-0.1, 1.1, NAN], [0.0, 1.0]),
        "utterance_dropout": ([-0.1, 1.1, NAN], [0.0, 1.0]),
        "word_dropout": ([-0.1, 1.1, NAN], [0.0, 1.0]),
    },
    ObjectiveConfig: {
        "beta": ([-0.1, NAN], [0.0]),
        "free_bits": ([-0.1, NAN], [0.0]),
        "target_rate": ([-0.1, NAN], [0.0]),
        "kl_warmup_steps": ([0], [1]),
        "kl_cycles": ([0], [1]),
        "bag_of_words": ([-0.1, NAN], [0.0]),
        "importance_samples": ([0], [1]),
        "pretrain_steps": ([-1], [0]),
    },
    TrainConfig: {
        "max_steps": ([-1, 0], [1]),
        "max_minutes": ([-0.1, NAN], [0.0]),
        "learning_rate": ([-0.1, 0.0, NAN], [1e-9]),
        "final_learning_rate": ([-0.1, 1.1, NAN], [0.0, 1.0]),
        "warmup_steps": ([-1], [0]),
        "weight_decay": ([-0.1, NAN], [0.0]),
        "clip_norm": ([-0.1, NAN], [0.0]),
        "accumulate": ([0], [1]),
        "seed": ([-1, 2**31], [0, 2**31 - 1]),
        "log_every": ([0], [1]),
        "validate_every": ([0], [1]),
        "checkpoint_every": ([0], [1]),
        "keep_last": ([0], [1]),
        "patience": ([-1], [0]),
        "validation_turns": ([-1], [0]),
        "threads": ([-1], [0]),
    },
    DecodingConfig: {
        "temperature": ([-0.1, 5.1, NAN], [0.0, 5.0]),
        "top_k": ([-1], [0]),
        "top_p": ([0.0, 1.1, NAN], [1e-9, 1.0]),
        "min_p": ([-0.1, 1.1, NAN], [0.0, 1.0]),
        "repetition_penalty": ([0.9, 100.1, NAN], [1.0, 100.0]),
        "no_repeat_ngram": ([-1], [0]),
        "beams": ([-1, 65], [0, 64]),
        "length_penalty": ([-0.1, 10.1, NAN], [0.0, 10.0]),
        "max_tokens": ([0, 129], [1, 128]),
    },
    EvaluateConfig: {
        "k": ([-1], [0]),
        "max_turns": ([-1], [0]),
        "max_turn_tokens": ([-1], [0]),
        "samples": ([-1, 1], [0, 2]),
        "paths": ([-1], [0]),
        "contexts": ([-1], [0]),
        "replies": ([0, 257], [1, 256]),
        "seed": ([-1, 2**63], [0, 2**63 - 1]),
    },
}


def cases(which: int) -> list[Any]:
    return [
        pytest.param(cls, name, value, id=f"{cls.__name__}.{name}={value}")
        for cls, settings in RANGES.items()
        for name, both in settings.items()
        for value in both[which]
    ]


@pytest.mark.parametrize(("cls", "name", "value"), cases(0))
def test_a_value_outside_its_range_is_refused_by_name_and_value(cls: type[Any], name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"\b{name}\b.*{re.escape(str(value))}"):
        cls(**{name: value})


@pytest.mark.parametrize(("cls", "name", "value"), cases(1))
def test_a_value_at_the_end_of_its_range_is_accepted(cls: type[Any], name: str, value: Any) -> None:
    assert getattr(cls(**{name: value}), name) == value


@pytest.mark.parametrize("cls", RANGES)
def test_every_number_has_a_range(cls: type[Any]) -> None:
    numbers = {field.name for field in dataclasses.fields(cls) if type(getattr(cls(), field.name)) in (int, float)}
    assert numbers == set(RANGES[cls])


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (ModelConfig, dict(prior="gaussian"), "model.prior gaussian is learnt from a context"),
        (ModelConfig, dict(prior="gaussian"), "needs model.context_turns of 1 or more"),
        (ModelConfig, dict(context_turns=1, batch_norm_scale=0.5), "set model.prior to standard"),
        (ModelConfig, dict(latent_size=1, flow_steps=2), "needs model.latent_size of 2 or more"),
        (EvaluateConfig, dict(split="dev"), "--split must be one of train, validation, test. Got 'dev'"),
    ],
)
def test_settings_that_have_no_meaning_together_are_refused(cls: type[Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        cls(**settings)


@pytest.mark.parametrize(
    ("model", "objective", "message"),
    [
        (dict(context_turns=1), dict(aggressive=True), "objective.aggressive needs model.context_turns 0"),
        (dict(flow_steps=1), dict(doubly_reparameterised=True), "set model.flow_steps to 0"),
    ],
)
def test_a_run_whose_parts_have_no_meaning_together_is_refused(
    model: dict[str, Any], objective: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        RunConfig(model=ModelConfig(**model), objective=ObjectiveConfig(**objective))


@pytest.mark.parametrize(
    ("settings", "prior"),
    [({}, "standard"), (dict(context_turns=1), "gaussian"), (dict(context_turns=1, prior="standard"), "standard")],
)
def test_the_prior_is_standard_without_a_context_and_learnt_with_one_unless_told(settings: dict[str, Any], prior: str) -> None:
    assert ModelConfig(**settings).prior_of_context == prior


def test_an_odd_width_is_accepted_where_a_turn_is_read_in_one_direction() -> None:
    assert ModelConfig(hidden_size=7, bidirectional=False).hidden_size == 7


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not RunConfig])
def test_every_setting_is_documented(cls: type[Any]) -> None:
    documented = re.findall(r"^        (\w+): ", cls.__doc__, re.MULTILINE)
    assert documented == [field.name for field in dataclasses.fields(cls)]


@pytest.mark.parametrize("cls", CLASSES)
def test_settings_are_frozen(cls: type[Any]) -> None:
    config = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(cls)[0].name, None)


# from_dict


@pytest.mark.parametrize("cls", CLASSES)
def test_settings_survive_json(cls: type[Any]) -> None:
    config = cls()
    assert from_dict(cls, json.loads(json.dumps(dataclasses.asdict(config))), "here") == config


def test_what_is_given_is_taken_and_the_rest_is_the_default() -> None:
    config = from_dict(RunConfig, {"model": {"latent_size": 5}, "train": {"seed": 7}}, "here")
    assert config == RunConfig(model=ModelConfig(latent_size=5), train=TrainConfig(seed=7))


def test_a_whole_number_will_do_for_a_real_one() -> None:
    beta = from_dict(ObjectiveConfig, {"beta": 2}, "here").beta
    assert (beta, type(beta)) == (2.0, float)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (
            ModelConfig,
            {"latnet_size": 3},
            "run.json: unknown settings latnet_size. Did you mean latent_size? Known: vocab_size,",
        ),
        (RunConfig, {"model": {"x": 1, "y": 2}}, "run.json: model: unknown settings x, y"),
        (ModelConfig, {"latent_size": "3"}, "run.json: latent_size must be int. Got '3'"),
        (ModelConfig, {"latent_size": 3.0}, "run.json: latent_size must be int. Got 3.0"),
        (ModelConfig, {"latent_size": True}, "run.json: latent_size must be int. Got True"),
        (ModelConfig, {"latent_size": None}, "run.json: latent_size must be int. Got None"),
        (ModelConfig, {"speakers": 1}, "run.json: speakers must be bool. Got 1"),
        (ModelConfig, {"dropout": True}, "run.json: dropout must be float. Got True"),
        (ModelConfig, {"dropout": "0.1"}, "run.json: dropout must be float. Got '0.1'"),
        (ModelConfig, {"dropout": 10**400}, "run.json: dropout must be float. Got 1000"),
        (SourceConfig, {"source": ["a"]}, "run.json: source must be str. Got ['a']"),
        (ObjectiveConfig, {"kl_schedule": "cosin"}, "run.json: kl_schedule must be one of constant, linear, logistic"),
        (RunConfig, {"train": {"precision": "fp8"}}, "run.json: train: precision must be one of auto, fp32, bf16. Got 'fp8'"),
        (ModelConfig, {"dropout": 1}, "run.json: model.dropout must be in [0, 1). Got 1.0"),
        (RunConfig, {"train": {"seed": -1}}, "run.json: train: train.seed must be in [0, 2**31). Got -1"),
        (RunConfig, {"model": 3}, "run.json: model: expected an object for ModelConfig. Got int"),
        (ModelConfig, None, "run.json: expected an object for ModelConfig. Got NoneType"),
        (ModelConfig, [], "run.json: expected an object for ModelConfig. Got list"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_place_the_name_and_the_value(
    cls: type[Any], values: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_dict(cls, values, "run.json")


@pytest.mark.parametrize("key", ["\ud800", "\x1b[2J", "\u202e"])
def test_a_message_can_be_printed_whatever_the_names_in_a_file(key: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_dict(ModelConfig, {key: 1}, "run.json")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("levels", range(900, sys.getrecursionlimit(), 10))
def test_a_value_of_many_levels_is_refused(levels: int) -> None:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    with pytest.raises(ConfigError, match="latent_size must be int"):
        from_dict(ModelConfig, {"latent_size": value}, "run.json")


@pytest.mark.parametrize("values", [{"latent_size": "x" * 100_000}, {"x" * 100_000: 1}], ids=["value", "name"])
def test_a_message_stays_short_whatever_the_file_says(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        from_dict(ModelConfig, values, "run.json")
    assert len(str(error.value)) < 500
