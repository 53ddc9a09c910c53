"""What a command imports decides how long one waits for it. `benchmarks/cold_start.py` has the times, this file the causes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vrae.corpus.prepared import Corpus

ROOT = Path(__file__).parents[2]
FOREIGN = ("datasets", "pandas", "pyarrow", "matplotlib", "huggingface_hub", "tensorboard", "sacrebleu", "sklearn")
COMPILER = ("torch._dynamo", "torch._inductor", "sympy")  # two seconds, which only torch's optimisers ask for

PROGRAM = """
import json, sys
from vrae.apps.cli import main
try:
    code = main(json.loads(sys.argv[1]))
except SystemExit as error:
    code = error.code
print(json.dumps([code, [name for name in sys.argv[2:] if name in sys.modules]]))
"""


def loaded(arguments: list[str], *libraries: str) -> list[str]:
    """Which of these libraries a command loads, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(arguments), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    code, found = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    names: list[str] = found
    return names


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["respond", "--help"]], ids=" ".join)
def test_help_waits_for_no_library(arguments: list[str]) -> None:
    assert loaded(arguments, "torch", "numpy", "sentencepiece", *FOREIGN) == []


def test_training_and_a_reply_load_what_they_work_with(corpus: Corpus, tmp_path: Path) -> None:
    small = [f"--model.{name}=8" for name in ("hidden_size", "embedding_size", "context_size", "latent_size")]
    small += ["--model.context_turns=1", "--batches.segment_turns=4", "--train.threads=1"]
    train = ["train", "--data", str(corpus.path), "--out", str(tmp_path), "--dry_run", "--quiet", *small]
    assert loaded(train, "torch", *FOREIGN) == ["torch"]
    respond = ["respond", "Hello!", "--model", str(tmp_path / "dry-run")]
    assert loaded(respond, "torch", *FOREIGN, *COMPILER) == ["torch"]
