"""The search for the bundled models: what its table says of a run is what was run."""

from __future__ import annotations

import dataclasses
import json

import pytest
import search
import yaml

from vrae.apps.parser import configs
from vrae.config import RunConfig, from_dict

RUNS = yaml.safe_load((search.FOLDER / "runs.yaml").read_text(encoding="utf-8"))
RECORDS = {path.stem: json.loads(path.read_text()) for path in sorted(search.FOLDER.glob("*.json"))}


def test_a_base_gives_what_a_run_does_not_say() -> None:
    runs = {
        "a": {"model.latent_size": 0, "train.max_steps": 10},
        "b": {"base": "a", "corpus": "sentences", "train.max_steps": 20},
        "c": {"base": "b"},
    }
    config, corpus = search.config_of("c", runs)
    assert (config.model.latent_size, config.train.max_steps, corpus) == (0, 20, "sentences")
    config, corpus = search.config_of("a", runs)
    assert (config.train.max_steps, corpus) == (10, "chitchat")


@pytest.mark.parametrize("name", sorted(RUNS.keys() & configs().keys()))
def test_a_run_that_is_a_configuration_too_is_the_same(name: str) -> None:
    config: RunConfig = from_dict(RunConfig, yaml.safe_load(configs()[name].read_text()), name)
    assert search.config_of(name, RUNS)[0] == config


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_of_the_run_of_its_name(name: str) -> None:
    expected = dataclasses.asdict(search.config_of(name, RUNS)[0])
    found = RECORDS[name]["config"]
    found["train"]["threads"] = expected["train"]["threads"]  # the program's own
    assert found == expected


def test_the_table_is_that_of_the_records() -> None:
    page = (search.FOLDER / "README.md").read_text(encoding="utf-8")
    for name, record in RECORDS.items():
        assert f"| {name} | " in page
        assert f"{record['nll_iw']:.2f} ({record['nll_iw_error']:.2f})" in page
