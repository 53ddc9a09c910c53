"""The models that come with the package: trained on chitchat (docs/results.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Job = Literal["dialogue", "sentences"]
NAMES: dict[Job, str] = {
    "dialogue": "chitchat-vhred",  # reads the turns before: replies, and the likelihood of what was said
    "sentences": "chitchat-vrae",  # keeps nearly all of a sentence in its latent: the space to move in
}


def folder(name: str) -> Path | None:
    """Where a bundled model is; None where there is none of this name."""
    return Path(__file__).parent / "weights" / name if name in NAMES.values() else None
