"""What the page of `vrae serve` is put together with: its look, its events, and errors that are kind to whoever asked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from vrae.errors import UserError, is_out_of_memory

_JAVASCRIPT = (Path(__file__).parent / "assets" / "page.js").read_text(encoding="utf-8")
JOB: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # whatever asks the model waits in one queue
EVENT: dict[str, Any] = {**JOB, "api_visibility": "private", "show_progress": "minimal"}


def theme() -> gr.themes.Base:
    """System fonts, one accent; text and buttons with enough contrast in light and in dark."""
    return gr.themes.Base(
        primary_hue="teal", neutral_hue="stone", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(
        color_accent="*primary_700",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_secondary_background_fill="transparent",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="transparent",
        button_secondary_background_fill_hover_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_600",
        button_border_width="1px",
        button_large_text_size="*text_md",
        button_large_text_weight="500",
        button_large_padding="8px 16px",
        slider_color="*primary_700",
        slider_color_dark="*primary_400",
    )


def kindly(job: Callable[..., Any], shown: Callable[[str], str] = str) -> Callable[..., Any]:
    """A job that fails with a line for whoever asked. `shown`: how that line is written; on the page it is HTML."""

    @functools.wraps(job)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return job(*args, **kwargs)
        except UserError as error:
            raise gr.Error(shown(str(error)), title="That did not work", print_exception=False) from None
        except Exception as error:
            if is_out_of_memory(error):
                raise gr.Error("out of memory: ask for less at a time", title="That did not work") from error
            raise gr.Error("something went wrong here; the log of the server says what", title="Our mistake") from error

    return run


def on(event: Callable[..., Any], job: Callable[..., Any], inputs: Any, outputs: Any) -> None:
    event(kindly(job, escape), inputs, outputs, **EVENT)


def html(value: str) -> gr.HTML:
    """A fragment, which may trigger `select`."""
    return gr.HTML(value, js_on_load=_JAVASCRIPT, apply_default_css=False)
