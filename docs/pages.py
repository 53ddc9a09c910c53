"""What the site has besides the pages of this folder: a hook of MkDocs (see mkdocs.yml).

README.md                            is the front page
a notebook                           becomes a page, with its outputs
a file of the repository             that a page links to becomes a page as well, so that no link leads out of the site
`vrae.model.gaussian.Gaussian.kl`    in equations.md becomes a link to the line where it is defined
<!-- commands -->                    in cli.md becomes the help of every command
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
NAME = re.compile(r"`(vrae\.[\w.]+)`")
FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
KINDS = {".py": "python", ".yaml": "yaml", ".jsonl": "json", ".toml": "toml"}


def on_files(files: Any, config: Any) -> Any:
    """Adds a page for every file that is reached by links from README.md and the pages of this folder."""
    from mkdocs.structure.files import File, InclusionLevel

    found, new = {"README.md"}, {"README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())}
    new |= {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.ipynb")}
    while new:
        found |= new
        new = {target for source in new for target in targets(source)} - found
    for name in sorted(found):
        if not files.get_file_from_path(page_of(name)):
            _SOURCES[page_of(name)] = name
            file = File.generated(config, page_of(name), content=content(name))
            if file.src_uri.startswith("files/"):
                file.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Sends links to where the site has what they lead to."""
    source = _SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if page.file.src_uri == "cli.md":
        markdown = markdown.replace("<!-- commands -->", commands())
    if page.file.src_uri == "equations.md":
        markdown = NAME.sub(lambda match: f"[`{match[1]}`]({place(match[1])})", markdown)
    return "".join(part if part.startswith("```") else relink(part, source) for part in FENCE.split(markdown))


_SOURCES: dict[str, str] = {}  # pages that were added, and the files of the repository that they show


def page_of(name: str) -> str:
    """The page of a file of the repository. The layout of the site is that of docs/, with all else below files/."""
    path = Path(name)
    if name == "README.md":
        page = "index.md"
    elif path.parts[0] == "docs":
        page = str(Path(*path.parts[1:])) + (".md" if path.suffix == ".ipynb" else "")
    elif path.suffix == ".md":
        page = f"files/{name.replace('README', 'readme')}"
    else:
        page = f"files/{name}.md"
    return page


def targets(name: str) -> set[str]:
    """The files of the repository that a page links to, pictures left out."""
    if not name.endswith((".md", ".ipynb")):
        return set()
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".ipynb"):
        text = notebook(json.loads(text))
    names = {posixpath.normpath(posixpath.join(posixpath.dirname(name), match[2])) for match in LINK.finditer(text)}
    if name == "docs/equations.md":
        names |= {place(match[1])[3:].partition("#")[0] for match in NAME.finditer(text)}
    return {name for name in names if (ROOT / name).exists() and not name.endswith((".png", ".svg"))}


def relink(markdown: str, source: str) -> str:
    """Links of a file of the repository, as they must be on its page."""
    here = posixpath.dirname(page_of(source)) or "."

    def new(match: re.Match[str]) -> str:
        name = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        if not (ROOT / name).exists():
            return match[0]
        page = page_of(name) if not name.endswith((".png", ".svg")) else posixpath.relpath(name, "docs")
        return f"{match[1]}{posixpath.relpath(page, here)}{match[3] or ''}{match[4]}"

    return LINK.sub(new, markdown)


def content(name: str) -> str:
    """The Markdown of a page that is no file of this folder."""
    path = ROOT / name
    if path.is_dir():
        names = sorted(path.glob("*.md"))
        return f"# {name}\n\n" + "\n".join(f"- [{file.name}]({path.name}/{file.name})" for file in names)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    if path.suffix == ".ipynb":
        return notebook(json.loads(text))
    kind = KINDS.get(path.suffix, "text")
    return f'---\nsearch:\n  exclude: true\n---\n# {name}\n\n```` {{.{kind} linenums="1"}}\n{text}````\n'


def notebook(stored: dict[str, Any]) -> str:
    """A notebook as Markdown."""
    parts = []
    for cell in stored["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                picture = base64.b64encode(base64.b64decode("".join(data["image/png"]))).decode()
                parts.append(f"![What the cell draws](data:image/png;base64,{picture})")
            elif words := output.get("text") or data.get("text/plain"):
                parts.append(f"```text\n{''.join(words).rstrip()}\n```")
    return "\n\n".join(parts)


def place(name: str) -> str:
    """Where a function, a class or a method is defined, as a link from this folder: file and line."""
    parts = name.split(".")
    cut = next(i for i in range(len(parts), 0, -1) if ROOT.joinpath(*parts[:i]).with_suffix(".py").is_file())
    file, node = "/".join(parts[:cut]) + ".py", None
    body: list[Any] = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for part in parts[cut:]:
        node = next(node for node in body if getattr(node, "name", "") == part)
        body = getattr(node, "body", [])
    return f"../{file}" + (f"#__codelineno-0-{node.lineno}" if node else "")


def commands() -> str:
    """The help of every command."""
    from vrae.apps.cli import _COMMANDS
    from vrae.apps.parser import build_parser

    os.environ["COLUMNS"] = "90"
    parts = []
    for name in _COMMANDS:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            build_parser().parse_args([*name.split(), "--help"])
        plain = re.sub(r"\x1b\[[\d;]*m|[^\x20-\x7e\n]", "", text.getvalue().replace(f"{ROOT}/", "")).rstrip()
        parts.append(f"## vrae {name}\n\n```text\n{plain}\n```")
    return "\n\n".join(parts)
