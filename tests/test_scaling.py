"""docs/scaling.md: its launch examples are complete, and its prediction is what the simulation comes to where it is exact."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from vrae.apps.cli import parse
from vrae.apps.parser import build_parser, config_path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def example(mark: str) -> str:
    (block,) = re.findall(rf"<!-- {mark} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    return str(block)


def trained(command: str) -> Any:
    """The settings of the one `vrae train` in a shell text."""
    (options,) = re.findall(r"vrae train (.*)", command.replace("\\\n", " "))
    arguments = [re.sub(r"\$\{?\w+\}?", "x", word) for word in shlex.split(options)]
    place = arguments.index("--config") + 1
    arguments[place] = config_path(arguments[place])
    values = parse(build_parser(), ["train", *arguments])["train"]
    assert values.resume
    return values


def launched(command: str) -> dict[str, str]:
    """The options of torchrun."""
    (options,) = re.findall(r"torchrun (.*?)--no-python", command.replace("\\\n", " "))
    names = re.findall(r"--(\w+)[ =](\S+)", options)
    help = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--help"], capture_output=True, text=True, check=True)
    for name, _ in names:
        assert f"--{name}" in help.stdout.replace("-", "_").replace("__", "--"), name
    return dict(names)


def test_slurm_script_is_bash_and_its_options_are_known() -> None:
    script = example("slurm")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", script, re.M))
    assert {"nodes", "gpus-per-node", "requeue", "signal", "time"} <= set(directives)
    assert directives["ntasks-per-node"] == "1"  # torchrun, which starts the processes
    assert launched(script)["nproc_per_node"] == directives["gpus-per-node"]
    trained(script)


def test_kubernetes_manifest_is_yaml_and_its_options_are_known() -> None:
    service, job = yaml.safe_load_all(example("kubernetes"))
    assert (service["kind"], job["kind"], job["apiVersion"]) == ("Service", "Job", "batch/v1")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    (container,) = pod["containers"]
    shell, flag, command = container["command"]
    assert (shell, flag) == ("bash", "-c")
    assert subprocess.run(["bash", "-n"], input=command, text=True, check=False).returncode == 0
    options = launched(command)
    assert int(options["nnodes"]) == spec["parallelism"]
    assert int(options["nproc_per_node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    first = f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert options["rdzv_endpoint"].startswith(f"{first}:")
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    trained(command)


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_scaling", ROOT / "benchmarks" / "scaling.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("count", [1, 2, 8, 64, 1024])
def test_where_nothing_is_left_to_chance_prediction_and_simulation_agree(scaling: ModuleType, count: int) -> None:
    machine = dataclasses.replace(scaling.H100, spread=0.0)
    work = scaling.Work(2.5e7, 6_000_000, 32_768, [1.0], 18.0, 1e-9, 2e-8)
    expected = sum(scaling.predict(work, machine, count).values())
    assert sum(scaling.simulate(work, machine, count, 200).values()) == pytest.approx(expected, rel=1e-3)


def test_the_largest_of_many_shares_is_foretold(scaling: ModuleType) -> None:
    rng = np.random.default_rng(0)
    shares = rng.normal(1, 0.02, 10_000).tolist()
    for count in (2, 8, 64):
        found = (rng.choice(shares, (4000, count)) * rng.lognormal(0, 0.03, (4000, count))).max(1).mean()
        assert scaling.slowest(shares, 0.03, count) - 1 == pytest.approx(found - 1, rel=0.1)
