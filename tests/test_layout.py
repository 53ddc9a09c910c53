"""Files stand in the order of the data; each imports only what stands above it, and light names load no heavy library."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vrae

ROOT = Path(vrae.__file__).parent
ORDER = {
    "": ["errors", "config", "files", "bundled", "distributed"],
    "corpus": ["readers", "layouts", "sources", "cleaning", "tokenizer", "encoding", "prepared", "noise", "batches"],
    "model": [
        *("dropout", "products", "recurrence", "vocabulary"),
        *("gaussian", "mixture", "flow", "encoder", "decoder", "vrae", "bound", "folder"),
    ],
    "generation": [
        *("deadline", "decoding", "latent", "text_model", "card", "hub", "publishing", "responses", "pipeline"),
        *("vector_search", "neighbours", "attributes"),
    ],
    "evaluation": [
        *("information", "turns", "likelihood", "score"),
        *("bits_back", "container", "compression"),
        *("bleu", "diversity", "vectors", "dialogue", "replies", "quality", "transfer", "paths", "report"),
    ],
    "training": [
        *("schedules", "objective", "optimizer", "gradients", "cost", "hardware", "signals"),
        *("checkpoint", "callbacks", "board", "monitor", "run_folder", "trainer", "judge"),
    ],
}
PLACES = [".".join(filter(None, ("vrae", group, module))) for group, modules in ORDER.items() for module in modules]
LAST = ("vrae.apps.", "vrae.__main__")  # on top of everything, in any order among themselves


def module_name(path: Path) -> str:
    return ".".join(("vrae", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
CODE = [name for name in MODULES if name in PLACES or name.startswith(LAST)]


def imports(name: str) -> set[str]:
    """The modules of vrae that one imports anywhere in its text: in functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: import by the full name"
            base = node.module or ""
            found.update(full if (full := f"{base}.{alias.name}") in MODULES else base for alias in node.names)
    return {module for module in found if module in MODULES and module != "vrae"}


def test_every_module_has_its_place() -> None:
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert sorted(MODULES) == sorted({*CODE, *packages})


@pytest.mark.parametrize("name", CODE)
def test_a_module_imports_only_what_stands_above_it(name: str) -> None:
    above = set(PLACES[: PLACES.index(name)]) if name in PLACES else {*CODE}
    assert imports(name) <= above


def test_no_modules_import_each_other() -> None:
    assert list(TopologicalSorter({name: imports(name) for name in CODE}).static_order())


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.name == "__init__.py" and name != "vrae"])
def test_packages_hold_no_code(name: str) -> None:
    assert not ast.parse(MODULES[name].read_text(encoding="utf-8")).body[1:]


@pytest.mark.parametrize(
    "statement", ["import vrae", "import vrae.config", "import vrae.corpus.sources", "import vrae.apps.parser"]
)
def test_importing_light_modules_loads_no_heavy_library(statement: str) -> None:
    heavy = ["torch", "datasets", "pandas", "pyarrow", "matplotlib", "huggingface_hub"]
    check = f"{statement}; import sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", check], capture_output=True, text=True, cwd=ROOT.parent)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("name", vrae.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(vrae, name) is not None
    assert name in dir(vrae)


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'vrae' has no attribute 'nothing'"):
        vrae.nothing  # noqa: B018
