"""Markdown of strangers: what it may look like on a page, and what it must not do there."""

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest

from vrae.apps.markdown import LONGEST, to_html

PLAIN = {
    *("h4", "h5", "h6", "p", "ul", "ol", "li", "em", "strong", "code", "pre", "blockquote", "hr", "br", "a"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
ALLOWED = {"a": {"href", "target", "rel", "title"}, "code": {"class"}, "ol": {"start"}, "th": {"style"}, "td": {"style"}}
HOSTILE = [
    "<script>alert(1)</script>",
    "text <img src=x onerror=alert(1)> text",
    "<div style='position: fixed; inset: 0'>\n\n# All of the page\n\n</div>",
    "<style>* { display: none }</style>",
    "<iframe src='https://example.com'></iframe>",
    "<button data-index=1 data-text=x class=v-choice>",
    "<!-- --><svg onload=alert(1)>",
    "![a picture](https://example.com/pixel.png)",
    "![a picture][far]\n\n[far]: https://example.com/pixel.png",
    '![" onerror="alert(1)](x.png "title")',
    "![<img src=x onerror=alert(1)>](https://example.com/a.png)",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](&#106;avascript:alert(1))",
    "[click](\tjavascript:alert(1))",
    "[click](<java\nscript:alert(1)>)",
    "[click](data:text/html;base64,PHNjcmlwdD4=)",
    "[click](data:image/png;base64,AAAA)",
    "[click](vbscript:x)",
    "[click](file:///etc/passwd)",
    "[click](/gradio_api/call/v2/score)",
    "[click](//example.com)",
    "[click][far]\n\n[far]: javascript:alert(1)",
    "<javascript:alert(1)>",
    '[click](https://example.com "" onmouseover="alert(1)")',
    '[click](https://example.com/"onmouseover="alert(1))',
    "```html\n<script>alert(1)</script>\n```",
    '```"onmouseover="alert(1)\nx\n```',
    '```v-choice" onclick="x\nx\n```',
    "`<script>alert(1)</script>`",
    "| <script> | b |\n|---|:--|\n| <img src=x> | ![x](y) |",
    "---\nname: x\n---\n<script>alert(1)</script>",
    "${alert(1)} {{value}} `${1+1}`",
    "\x00<scr\x00ipt>alert(1)</script>",
]


class Found(HTMLParser):
    """The elements of a page, as a browser would read them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_is_run_and_nothing_fetched(text: str) -> None:
    for tag, attributes in Found(to_html(text)).elements:
        assert tag in PLAIN
        assert set(attributes) <= ALLOWED.get(tag, set())
        assert (attributes.get("href") or "https://").startswith(("https://", "http://"))
        assert (attributes.get("class") or "language-").startswith("language-")
        assert (attributes.get("style") or "text-align:left") in {f"text-align:{side}" for side in ("left", "right", "center")}


def test_what_is_written_is_read() -> None:
    shown = to_html(
        "---\nlicense: mit\n---\n# A model\n\nOf *two* words: `a < b`.\n\n- one\n- ![two](https://example.com/far.png)\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n```bash\nvrae serve\n```\n\n[its paper](https://example.com/paper)"
    )
    assert "license" not in shown
    for part in (
        "<h4>A model</h4>",
        "<em>two</em>",
        "<code>a &lt; b</code>",
        "<li>one</li>",
        "<li>two</li>",
        "<td>2</td>",
        '<pre><code class="language-bash">vrae serve\n</code></pre>',
        '<a href="https://example.com/paper" target="_blank" rel="noopener noreferrer nofollow">its paper</a>',
    ):
        assert part in shown


@pytest.mark.parametrize("text", ["[" * LONGEST, "![" * LONGEST, "*a " * LONGEST, "---\n" * LONGEST])
def test_it_does_not_take_long(text: str) -> None:
    began = time.process_time()
    assert len(to_html(text)) < 10 * LONGEST
    assert time.process_time() - began < 5
