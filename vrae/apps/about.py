"""What is recorded of a model, for people: its shape, what it was trained on, what validation said of it, and its card."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

from vrae.apps.fragments import curve, note, table
from vrae.apps.markdown import LONGEST, to_html
from vrae.generation.card import CARD, MARK
from vrae.generation.pipeline import Pipeline
from vrae.model.folder import CONFIG
from vrae.training.monitor import read_records

_NAT = 1 / math.log(2)  # in bits
_NEEDED = ("step", "elbo", "rate", "distortion")
_WORDS = {"chitchat": "Chitchat (Myers, Etchart & Fulda 2020)"}


def about(pipeline: Pipeline, name: str, run: Path) -> str:
    """HTML. `run`: the folder that the model was loaded from; where it is a run, the figures of its training are shown.

    Where it is a model, the card that lies in it; else, one written from the model's records.
    """
    config, info = pipeline.model.config, pipeline.info
    parameters = sum(tensor.numel() for tensor in pipeline.model.parameters())
    turns = {0: "none: it writes single sentences", 1: "the last turn"}
    shape = [
        ("Name", name),
        ("Size", f"{parameters:,} weights"),
        ("Vocabulary", f"{config.vocab_size:,} pieces of words"),
        ("Reads of a dialogue", turns.get(config.context_turns, f"the last {config.context_turns} turns")),
        ("Latent space", f"{config.latent_size} dimensions" if config.latent_size else "none"),
        ("Longest turn in training", f"{pipeline.longest_turn} pieces"),
    ]
    corpus = info.get("corpus")
    parts = [table("The model", shape), _corpus(corpus) if isinstance(corpus, dict) else ""]
    try:
        records = [record for record in read_records(run / "metrics.jsonl") if _is_validation(record)]
    except OSError:
        records = []
    unknown = note("No record of its training lies beside this model.")
    parts.append(_figures(records, config.latent_size) if records else unknown)
    title = '<h3 class="v-label">Its model card</h3>'
    return f'{"".join(parts)}{title}<article class="v-card">{to_html(_card(pipeline, run))}</article>'


def _card(pipeline: Pipeline, folder: Path) -> str:
    """Markdown."""
    with contextlib.suppress(OSError):
        if (folder / CONFIG).is_file() and (folder / CARD).is_file():
            with open(folder / CARD, encoding="utf-8", errors="replace") as file:
                return file.read(LONGEST).replace(MARK, "")
    return pipeline.card().replace(MARK, "")


def _corpus(corpus: dict[str, Any]) -> str:
    source, splits = str(corpus.get("source", "not said")), corpus.get("splits")
    rows = [("Corpus", _WORDS.get(source, source)), ("Licence of the corpus", str(corpus.get("licence") or "not stated"))]
    if isinstance(splits, dict) and isinstance(train := splits.get("train"), dict):
        counts = (f"{train[key]:,} {key}" for key in ("dialogues", "turns") if isinstance(train.get(key), int))
        rows.append(("Trained on", ", ".join(counts)))
    return table("What it learnt from", rows)


def _is_validation(record: object) -> bool:
    """Whether it is one, and whole: whoever made the folder may have written anything."""
    return (
        isinstance(record, dict)
        and record.get("split") == "validation"
        and all(type(record.get(key)) in (int, float) and math.isfinite(record[key]) for key in _NEEDED)
    )


def _figures(records: list[dict[str, Any]], latent_size: int) -> str:
    """Of the validation turns; bits, for people. The last record is the newest."""
    last = records[-1]
    rows = [("Steps of training", f"{last['step']:,}"), ("To send a turn", f"{-last['elbo'] * _NAT:.1f} bits, of which")]
    rows += [
        ("\u2003the idea (latent)", f"{last['rate'] * _NAT:.1f} bits"),
        ("\u2003its wording, once the idea is known", f"{last['distortion'] * _NAT:.1f} bits"),
    ]
    if isinstance(last.get("bits_per_token"), float):
        rows.append(("A piece of a word", f"{last['bits_per_token']:.2f} bits"))
    if isinstance(last.get("active_units"), int):
        rows.append(("Latent dimensions in use", f"{last['active_units']} of {latent_size}"))
    words = note(
        "On turns it was not trained on. Fewer bits mean that the model is less surprised; each bit is a factor of two."
    )
    line = [(record["step"], -record["elbo"] * _NAT) for record in records]
    return table("How well it does", rows) + words + (curve("Bits a turn", line, "bits") if len(line) > 1 else "")
