"""vrae: variational recurrent autoencoders of dialogue text.

    >>> import vrae
    >>> model = vrae.load()
    >>> len(model.respond(["Hi!", "Hello, how was your weekend?"], n=5))
    5

Names are imported when they are first used, so that `import vrae` and `vrae --help` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vrae.corpus.prepared import Corpus as Corpus
    from vrae.corpus.sources import Dialogue as Dialogue
    from vrae.corpus.sources import read_dialogues as read_dialogues
    from vrae.generation.pipeline import Pipeline as Pipeline
    from vrae.generation.pipeline import load as load
    from vrae.model.vrae import VRAE as VRAE

__version__ = "0.1.0"
_HOME = {
    "Corpus": "vrae.corpus.prepared",
    "Dialogue": "vrae.corpus.sources",
    "Pipeline": "vrae.generation.pipeline",
    "VRAE": "vrae.model.vrae",
    "load": "vrae.generation.pipeline",
    "read_dialogues": "vrae.corpus.sources",
}
__all__ = ["VRAE", "Corpus", "Dialogue", "Pipeline", "__version__", "load", "read_dialogues"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vrae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
