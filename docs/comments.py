"""Lets the API pages show what stands behind a field: `log_prob: float  # nats, ...` (an extension of Griffe)."""

from __future__ import annotations

import ast
from typing import Any

from griffe import Docstring, Extension


class Comments(Extension):
    """The comment on a field's own line is its docstring, where it has none."""

    def on_attribute_instance(self, *, node: Any, attr: Any, **_: Any) -> None:
        if isinstance(node, ast.AnnAssign) and attr.docstring is None:
            line = attr.parent.module.filepath.read_text(encoding="utf-8").splitlines()[node.end_lineno - 1]
            _, mark, comment = line[node.end_col_offset :].partition("  # ")
            if mark:
                attr.docstring = Docstring(comment, lineno=node.lineno, parent=attr)
