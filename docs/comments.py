"""Lets the API pages say what stands behind a field, `log_prob: float  # nats, ...` (an extension of Griffe)."""

from __future__ import annotations

import ast
from typing import Any

from griffe import Docstring, Extension


class Comments(Extension):
    """The comments on the fields of a class become the section Attributes of its docstring."""

    def on_class_members(self, *, node: Any, cls: Any, **_: Any) -> None:
        if not isinstance(node, ast.ClassDef) or (cls.docstring and "Attributes:" in cls.docstring.value):
            return
        lines = cls.module.filepath.read_text(encoding="utf-8").splitlines()
        found = []
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.end_lineno:
                _, mark, comment = lines[field.end_lineno - 1][field.end_col_offset or 0 :].partition("  # ")
                if mark:
                    found.append(f"    {field.target.id}: {comment}")
        if found:
            text = "\n".join([cls.docstring.value if cls.docstring else "", "", "Attributes:", *found])
            cls.docstring = Docstring(text, parent=cls, parser="google")
