"""The model card: what a model was made of and how well it does, written from its own records, with what it is not for.

Its figures are those that training and `vrae evaluate` have written down; nothing is measured here.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vrae.config import CHITCHAT_CLEANING, CleaningConfig, ModelConfig, RunConfig, shown
from vrae.corpus.sources import SUFFIXES, is_hub_id
from vrae.errors import UserError

CARD, REPORT = "README.md", "report.json"
_MEASURE = "Make one with: vrae evaluate RUN --out FOLDER"
MARK = "<!-- Written by vrae from the records of the model. -->"
# Identifiers that the Hub knows, of licences that corpora have.
_LICENCES = ("mit", "apache-2.0", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-sa-4.0")
_FIGURES = {
    "turns": "",
    "elbo": "nats/turn",
    "rate": "nats/turn",
    "distortion": "nats/turn",
    "nll_iw": "nats/turn",
    "perplexity": "per token",
    "bits_per_token": "",
    "mutual_information": "nats",
    "active_units": "",
    "latent_size": "",
}
_LIMITS = """\
It is a recurrent network of a few million weights and knows no more than the turns it was trained on. Its replies are short and
casual; they may be wrong, odd, contradictory or unkind, and repeat what people wrote, their prejudices too. It was measured on
held-out turns of the same source alone: of other topics, other languages and other people the figures say nothing.

It must not be used

- to speak to people who do not know that a program answers, or in place of a person they rely on;
- for advice on health, law, money or safety, or for any decision about a person;
- where what it writes reaches others unread;
- to imitate a real person, or to find out about those whose turns it was trained on."""


def publishable(info: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` without what is nobody's business: of a file that was trained on, the folder it was in."""
    corpus = info.get("corpus")
    if not isinstance(corpus, dict) or not isinstance(corpus.get("source"), str):
        return dict(info)
    return {**info, "corpus": {**corpus, "source": _source(corpus["source"])}}


def read_report(path: str | Path, info: Mapping[str, Any]) -> bytes:
    """report.json of `vrae evaluate`, the file or the folder it is in.

    Raises:
        UserError: there is none, or it is about another model: another step, or another corpus.
    """
    path = Path(path)
    path = path / REPORT if path.is_dir() else path
    try:
        content = path.read_bytes()
        report = json.loads(content)
        found = {key: report["provenance"][key] for key in ("step", "corpus")}
        _figures(report)
        if not isinstance(report["warnings"], list):
            raise TypeError
    except OSError as error:
        raise UserError(f"--report {path}: cannot read: {error.strerror}. {_MEASURE}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"--report {path}: no report of vrae evaluate. {_MEASURE}") from None
    if found["step"] != info.get("step") or found["corpus"] != _of(info, "corpus").get("fingerprint"):
        raise UserError(
            f"--report {path}: is about another model, at step {shown(found['step'])}; this one is at step "
            f"{shown(info.get('step'))}. Run vrae evaluate on this one"
        )
    return content


def model_card(
    info: Mapping[str, Any],
    model: ModelConfig,
    parameters: int,
    *,
    name: str = "",
    report: bytes | None = None,
    license: str = "",
    language: str = "",
) -> str:
    """The card in Markdown, with the Hub's metadata.

    Args:
        info: `config.json` of the model.
        model: its architecture.
        parameters: how many it has.
        name: `owner/name` on the Hub, or of its folder; empty: not known yet.
        report: what `read_report` gave; None: the figures of training alone.
        license: of the weights, by the Hub's identifier; empty: that of the corpus, where the Hub knows it.
        language: its code, `en`; empty: that of chitchat, else none.
    """
    corpus, run = _of(info, "corpus"), _of(info, "run")
    source = _source(str(corpus.get("source", "")))
    licence = str(corpus.get("licence") or "")
    kind, sentence = _kind(model)
    license = license or (licence.lower() if licence.lower() in _LICENCES else "")
    metadata = {
        "library_name": "vrae",
        "license": license,
        "language": language or ("en" if source == "chitchat" else ""),
        "pipeline_tag": "text-generation",
        "datasets": [source] if is_hub_id(source) else [],
        "tags": ["vrae", "dialogue", "gru", kind.lower(), *(["variational-autoencoder"] if model.latent_size else [])],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in metadata.items() if value), "---", MARK, ""]
    lines += [f"# {name.rpartition('/')[2] or 'A model of vrae'}", "", f"{sentence} {parameters:,} parameters.", ""]
    lines += ["## Use", "", *_use(model, name or "FOLDER"), ""]
    lines += ["## Data", "", *_data(corpus, source, licence), ""]
    lines += ["## Figures", "", *_figure_lines(info, report), ""]
    lines += ["## Limits", "", _LIMITS, ""]
    lines += ["## How it was made", "", *_recipe(info, run, corpus, source), ""]
    return "\n".join(lines)


def _kind(model: ModelConfig) -> tuple[str, str]:
    """What the architecture is called, and in a sentence."""
    turns = f"the {model.context_turns} turns before it" if model.context_turns > 1 else "the turn before it"
    what = f"of a dialogue turn given {turns}" if model.context_turns else "of a dialogue turn by itself"
    if not model.latent_size:
        kind = ("RNN-LM", "Seq2Seq", "HRED")[min(model.context_turns, 2)]
        return kind, f"{kind}, a recurrent language model {what}, without a latent."
    kind = ("VRAE", "CVAE", "VHRED")[min(model.context_turns, 2)]
    return kind, f"{kind}, a variational recurrent autoencoder {what}, with a latent of {model.latent_size} numbers."


def _use(model: ModelConfig, name: str) -> list[str]:
    job, calls = "sample", ["for sample in model.sample(5, seed=1):", "    print(sample.text)"]
    if model.latent_size:
        calls = ['for step in model.interpolate("i am going home", "are you hungry?"):', "    print(step.t, step.text)"]
    if model.context_turns:
        job = 'respond "How was your weekend?"'
        reply = ['for reply in model.respond(["Hi!", "Hello, how was your weekend?"], n=5, seed=1):', "    print(reply.text)"]
        calls = [*reply, *(calls if model.latent_size else [])]
    command = f"vrae {job} -n 5 --model {name}"
    load = f'model = vrae.load("{name}")'
    load += f'  # or vrae.Pipeline.from_pretrained("{name}", revision="main")' if is_hub_id(name) else ""
    return ["```python", "import vrae", "", load, *calls, "```", "", "```bash", command, "```"]


def _data(corpus: Mapping[str, Any], source: str, licence: str) -> list[str]:
    if not corpus:
        return ["The model does not say what it was trained on."]
    lines = [f"Source: {_code(source)}; its licence: {_code(licence) if licence else 'not stated'}.", ""]
    counts = ("dialogues", "turns", "tokens")
    splits = {name: split for name, split in _of(corpus, "splits").items() if isinstance(split, dict)}
    if splits:
        lines += ["| split | " + " | ".join(counts) + " |", "|---|" + "---:|" * len(counts)]
        for split, values in splits.items():
            lines.append(f"| {_code(split)} | " + " | ".join(_number(values.get(count)) for count in counts) + " |")
    cleaning = ", ".join(f"{_plain(key)} {_plain(value)}" for key, value in _of(corpus, "cleaning").items())
    lines += ["", f"Cleaning: {cleaning or 'none known'}.", ""]
    return [*lines, f"sha256 of the prepared corpus: {_code(corpus.get('fingerprint'))}."]


def _figure_lines(info: Mapping[str, Any], report: bytes | None) -> list[str]:
    lines: list[str] = []
    trained = _of(info, "validation")
    if trained:
        turns = _number(trained.get("turns"))
        lines += [f"At the end of training, on {turns} validation turns, one draw of the posterior for each:", ""]
        lines += _table({key: (trained[key], None) for key in _FIGURES if key in trained})
    if report:
        content = json.loads(report)
        lines += ["", f"By `vrae evaluate` on the {_plain(content['split'])} split, {_plain(content['k'])} draws a turn:", ""]
        lines += _table({key: value for key, value in _figures(content).items() if key in _FIGURES})
        lines += [f"\nWarning: {_plain(warning, 500)}" for warning in content["warnings"]]
        lines += ["", f"All of it, with how it was measured, is in {REPORT}."]
    return lines or ["None are recorded. `vrae evaluate` measures."]


def _figures(report: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Value and standard error of each figure of a report."""
    sections = report["sections"].values()
    found = {key: (figure["value"], figure["error"]) for section in sections for key, figure in section["figures"].items()}
    return {**{key: (report[key], None) for key in ("split", "k")}, **found}


def _table(figures: Mapping[str, tuple[Any, Any]]) -> list[str]:
    lines = ["| figure | value | standard error | unit |", "|---|---:|---:|---|"]
    for key, (value, error) in figures.items():
        if value is not None:
            spread = _number(error) if error is not None else ""
            lines.append(f"| {key.replace('_', ' ')} | {_number(value)} | {spread} | {_FIGURES[key]} |")
    return lines


def _recipe(info: Mapping[str, Any], run: Mapping[str, Any], corpus: Mapping[str, Any], source: str) -> list[str]:
    if not run:
        return ["The model does not say how it was trained."]
    train, vocab = _of(run, "train"), _of(run, "model").get("vocab_size", "")
    versions = ", ".join(f"{_plain(key)} {_plain(value)}" for key, value in _of(info, "versions").items()) or "not recorded"
    hardware = _plain(info.get("hardware") or "not recorded")
    standard = CHITCHAT_CLEANING if source == "chitchat" else CleaningConfig()
    cleaning = [
        f"--cleaning.{key} {_word(str(value).lower())}"
        for key, value in _of(corpus, "cleaning").items()
        if getattr(standard, key, value) != value
    ]
    settings = [
        line
        for group, values in run.items()
        if isinstance(values, dict) and group.isidentifier()
        for line in (f"{group}:", *(f"  {key}: {json.dumps(value)}" for key, value in values.items() if key.isidentifier()))
    ]
    known = dataclasses.asdict(RunConfig())
    missing = [f"{group}.{key}" for group in known for key in known[group] if key not in _of(run, group)]
    if missing:  # today's defaults may not be what was done then
        settings.insert(0, f"# not recorded: {', '.join(missing)}")
    return [
        f"Seed {_plain(train.get('seed'))}, step {_plain(info.get('step'))}; versions: {versions}; hardware: {hardware}.",
        "",
        "```bash",
        " ".join(["vrae prepare", _word(source), "--out corpus --vocab_size", _word(vocab), *cleaning]),
        "vrae train --config recipe.yaml --data corpus --out run",
        "```",
        "",
        "recipe.yaml, every setting of the run:",
        "",
        "```yaml",
        *settings,
        "```",
    ]


def _source(name: str) -> str:
    """A source as others may read it."""
    is_file = name.lower().endswith(SUFFIXES) or not (is_hub_id(name) or name == "chitchat")
    return Path(name).name if is_file else name


def _of(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else _plain(value)


def _plain(value: Any, most: int = 80) -> str:
    """A value out of a record, as letters that Markdown leaves as they are."""
    text = shown(value if isinstance(value, (str, bool)) else str(value), most)
    return "".join(f"\\{letter}" if letter in "\\`*[]<>|#" else letter for letter in text)


def _word(value: Any) -> str:
    """A value out of a record, as a word of a command line that someone may copy."""
    return shlex.quote(shown(str(value)))


def _code(value: Any) -> str:
    return "`" + shown(str(value)).replace("`", "'").replace("|", "\\|") + "`"
