"""Every YAML in configs/ is a valid run that trains, shortened, on a small corpus."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from vrae.apps.cli import main
from vrae.apps.parser import configs
from vrae.config import RunConfig, from_dict
from vrae.model.vrae import VRAE

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
NAMES = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in sorted(CONFIGS.rglob("*.yaml"))]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("configs") / "corpus"
    options = ["--vocab_size", "400", "--validation_percent", "20", "--quiet"]
    assert main(["prepare", str(ROOT / "data" / "smalltalk.txt"), "--out", str(out), *options]) == 0
    return str(out)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name: str, corpus: str, tmp_path: Path) -> None:
    assert name in configs()
    arguments = ["--config", name, "--data", corpus, "--out", str(tmp_path), "--dry-run", "--quiet", "--train.threads", "1"]
    assert main(["train", *arguments]) == 0
    assert (tmp_path / "dry-run" / "checkpoints" / "best").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_its_header_names_the_command_that_runs_it(name: str) -> None:
    header = [line for line in configs()[name].read_text().splitlines() if line.startswith("#")]
    commands = [line for line in header if line.startswith("#   vrae ")]
    assert commands
    assert all(f"{name.split('/')[-1]}" in line for line in commands if "--config" in line)


@pytest.mark.parametrize(("name", "fewest", "most"), [("tiny", 3e5, 1e6), ("small", 2e6, 4e6), ("base", 7e6, 12e6)])
def test_a_preset_says_how_large_it_is(name: str, fewest: float, most: float) -> None:
    text = configs()[name].read_text()
    config = from_dict(RunConfig, yaml.safe_load(text), name)
    with torch.device("meta"):
        model = VRAE(dataclasses.replace(config.model, vocab_size=6000))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert fewest < parameters < most
    assert f"{parameters:,} parameters with a vocabulary of 6,000" in text
