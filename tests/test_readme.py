"""The commands and examples of README and docs run as they stand there (the demo shortened, and without installing)."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import MUTATIONS

from vrae.apps.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]


RUN = {"vrae": "-m vrae ", "python": ""}


def blocks(mark: str, page: str = README) -> list[str]:
    """The fenced blocks that follow `<!-- mark -->`."""
    return re.findall(rf"<!-- {mark} -->\n```\w+\n(.*?)```", page, re.DOTALL)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a newcomer has it after the demo: the repository's data, and `vrae-demo`. The training lasts seconds, and is
    as many steps on any machine: by minutes, a slow one had a model without a word to say."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "data", folder / "data")
    tiny = "--model.hidden_size 32 --model.embedding_size 16 --model.context_size 16 --steps 50 --train.threads 1"
    done = run(f"vrae demo {tiny}", folder)
    assert done.returncode == 0, done.stderr
    assert "[3/3]" in done.stdout
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """One shell line, with `vrae` being the package under test."""
    command = re.sub(r"(^|\| )(vrae|python) (?=\w)", lambda m: f"{m[1]}{shlex.quote(sys.executable)} {RUN[m[2]]}", command)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False)


COMMANDS = [command for block in blocks("run") for command in block.splitlines()]


@pytest.mark.parametrize(
    "command",
    [*COMMANDS, *(block for page in DOCS for block in blocks("run", page))],
    ids=lambda block: " ".join(block.split()[:6]),
)
def test_command_runs(
    command: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, but for what needs a shell; the lines of a block of the docs one after the other."""
    monkeypatch.chdir(workspace)
    for line in command.splitlines():
        if re.search("[|>]", line) or not line.startswith("vrae "):
            done = run(line, workspace)
            assert done.returncode == 0, done.stderr
            assert done.stdout or " > " in line  # an empty line is an answer too, of a model that has learnt for seconds
        else:
            assert main(shlex.split(line)[1:]) == 0
            assert capsys.readouterr().out


def test_python_example_runs(workspace: Path) -> None:
    (example,) = blocks("python")
    (workspace / "example.py").write_text(example)
    done = run(f"{shlex.quote(sys.executable)} example.py", workspace)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 12


DOCUMENTED = [path for path in sorted((ROOT / "vrae").rglob("*.py")) if ">>>" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", DOCUMENTED, ids=lambda path: path.stem)
def test_docstring_examples_run(path: Path, workspace: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    code = f"import doctest, {module} as m; result = doctest.testmod(m); assert result.attempted and not result.failed"
    done = run(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}", workspace)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_two_commands_are_one_line_each_and_install_the_lock() -> None:
    (demo,), (test,) = blocks("demo"), blocks("test")
    assert demo.count("\n") == test.count("\n") == 1
    assert "-r requirements.txt" in demo
    assert "-r requirements-dev.txt" in test


def test_every_link_to_a_file_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_contributing_lists_the_mistakes_that_are_tried() -> None:
    """And each can still be made: what it replaces stands once in its file."""
    listed = re.findall(r"^\| ([^|]+) \| `(vrae/[^`]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
    assert listed == [(mistake.name, mistake.file) for mistake in MUTATIONS]
    for mistake in MUTATIONS:
        assert (ROOT / mistake.file).read_text(encoding="utf-8").count(mistake.old) == 1, mistake.name


def test_every_configuration_is_listed() -> None:
    listed = set(re.findall(r"\(configs/([\w-]+)\.yaml\)", README))
    assert listed == {path.stem for path in (ROOT / "configs").glob("*.yaml")}


def test_every_remedy_is_listed_where_they_are_explained() -> None:
    text = (ROOT / "docs" / "remedies.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\(\.\./configs/remedies/([\w-]+)\.yaml\)", text))
    assert listed == {path.stem for path in (ROOT / "configs" / "remedies").glob("*.yaml")}


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_link_of_the_docs_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
