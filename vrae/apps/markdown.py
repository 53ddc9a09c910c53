"""A stranger's Markdown as HTML that can be shown: their words and their layout, and nothing of their own making.

Raw HTML is shown as the text that it is, a picture as its description. A link must be http or https; it is asked for when
someone clicks it, and not told where from. So nothing is run and nothing fetched by looking at it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

LONGEST = 20_000  # characters that are shown of it; some texts take a time that grows with the square
_BELOW = 3  # levels that its headings go down, for they stand under one of the page


def to_html(text: str) -> str:
    """HTML of the text without its metadata (YAML between lines of `---` at its beginning)."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.validateLink = _is_web  # type: ignore[method-assign,assignment]
    reader.add_render_rule("image", _description)
    tokens = reader.parse(re.sub(r"\A---\n.*?\n---\n", "", text[:LONGEST], flags=re.DOTALL))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + _BELOW, 6)}"
        for inner in token.children or ():
            if inner.type == "link_open":
                inner.attrs |= {"target": "_blank", "rel": "noopener noreferrer nofollow"}
    html: str = reader.renderer.render(tokens, reader.options, {})
    return html


def _is_web(address: str) -> bool:
    return address.lower().startswith(("https://", "http://"))


def _description(renderer: Any, tokens: Sequence[Any], i: int, options: Any, env: Any) -> str:
    return escape(tokens[i].content)
