"""The documentation hangs together: links and anchors lead somewhere, the notebook runs, the site can be built and is whole.

The two that need more packages than the tests (requirements-docs.txt) are slow, and are skipped where these are missing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for place in ("*.md", "docs/*.md", "data/*.md", "benchmarks/*.md") for path in ROOT.glob(place))
TOUR = ROOT / "docs" / "tour.ipynb"
PUBLIC = {"http", "https", "mailto"}


def prose(path: Path) -> str:
    """A page without its code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The headings of a page as both GitHub and the site name them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, TOUR], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        target = urlsplit(link)
        if target.scheme:
            assert target.scheme in PUBLIC, link
            continue
        path = page.parent / unquote(target.path) if target.path else page
        assert path.exists(), f"{page.name}: {link}"
        if target.fragment:
            assert target.fragment in anchors(path), f"{page.name}: {link}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_page_is_in_the_navigation(page: Path) -> None:
    assert f"- {page.name}\n" in (ROOT / "mkdocs.yml").read_text()


def test_the_tour_is_small_and_tells_nothing_of_the_machine_it_ran_on() -> None:
    text = TOUR.read_text(encoding="utf-8")
    assert len(text) < 100_000
    assert not re.search(r"/(tmp|root|home|Users|work)/", text)
    assert '"execution_count": 1' not in text


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Jupyter's own packages
def test_the_tour_runs() -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    stored = nbformat.read(TOUR, as_version=4)
    done = nbformat.read(TOUR, as_version=4)
    nbclient.NotebookClient(
        done, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(TOUR.parent)}}
    ).execute()
    for before, after in zip(stored.cells, done.cells, strict=True):
        if after.cell_type == "code":
            assert {output.output_type for output in after.outputs} == {output.output_type for output in before.outputs}


class Page(HTMLParser):
    """What an HTML page links to, loads and can be linked to by."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in ("img", "script", "iframe", "source") and "src" in found:
            self.loaded.append(found["src"])
        elif tag == "link" and found.get("rel") != "canonical" and "href" in found:
            self.loaded.append(found["href"])


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_loads_nothing_from_elsewhere_and_has_no_dead_link(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: Page(path) for path in (tmp_path / "site").rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 30
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            target = urlsplit(link)
            if target.scheme or target.netloc:
                assert link in page.links or target.scheme == "data", f"{path.name} loads {link}"
                continue
            other = (path.parent / unquote(target.path)).resolve() if target.path else path
            other = other / "index.html" if other.is_dir() else other
            assert other.exists(), f"{path.name}: {link}"
            if target.fragment and other in pages:
                assert unquote(target.fragment) in pages[other].ids, f"{path.name}: {link}"
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    for name in (
        "load",
        "Pipeline",
        "respond",
        "interpolate",
        "DecodingConfig",
        "prepare",
        "train",
        "VRAE",
        "Reply",
        "measure",
    ):
        assert re.search(rf'id="vrae\.[\w.]*\b{name}"', api), name
    assert "log p(reply | z, context) under the model as it is" in api  # a comment beside a field
    css = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.css"))
    assert not re.search(r"@import|url\([\"']?(https?:)?//", css)
