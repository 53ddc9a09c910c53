"""The reading test: replies of a model with a latent and of one without, mixed and unnamed, marked by a reader.

    python benchmarks/reading.py draw --model chitchat-vhred --baseline runs/chitchat-hred --data corpora/chitchat
    python benchmarks/reading.py report

Contexts: `--contexts` test contexts as benchmarks/responses.py chooses them. Each system gives five different replies to each
as `vrae respond` does (ranked by mmi among four candidates for each); the model with a latent at the temperature of that
command, the other (top-p 0.9) at `--baseline_temperature`, at which its replies are about as varied. `draw` writes
benchmarks/reading/sheet.txt, in which the ten replies to a context stand in random order, and key.json, which says whose each
is and is not looked at before the marks stand. Marks are a line of ten letters a context in benchmarks/reading/marks.txt:

    f  fits: someone could have said it here
    o  off-topic: a sentence in order, but not as an answer to what was said
    b  broken: not a sentence that anybody would write

`report` counts, and writes docs/reading.md with every reply and its mark. The marks that are stored were made on a sheet drawn
with `min_change` 0.2; 41 replies that came in their places with 0.5 were marked by themselves, without names. So were 35 of the
model with a latent that came with `rank_samples` 5 in place of 20, among as many of the other's that had marks: 29 of these got
the same again, 2 fewer `fits` and 2 fewer `broken` among them.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from responses import choose_contexts

import vrae
from vrae import Corpus
from vrae.config import TALK
from vrae.evaluation.replies import estimate
from vrae.files import to_json

FOLDER = Path(__file__).parent / "reading"
PAGE = Path(__file__).parents[1] / "docs" / "reading.md"
REPLIES = 5
MARKS = {"f": "fits", "o": "off-topic", "b": "broken"}


def draw(options: argparse.Namespace) -> None:
    """Writes the sheet and its key."""
    model, baseline = vrae.load(options.model), vrae.load(options.baseline)
    contexts = [turns for turns, _ in choose_contexts(Corpus(options.data), model.model.config.context_turns, options.contexts)]
    decoding, responses = TALK
    decoding = replace(decoding, max_tokens=32)
    systems = {"with": (model, decoding), "without": (baseline, replace(decoding, temperature=options.baseline_temperature))}
    replies = {
        name: [
            [reply.text for reply in some]
            for some in pipeline.respond_many(contexts, REPLIES, seed=options.seed, decoding=decoding, responses=responses)
        ]
        for name, (pipeline, decoding) in systems.items()
    }
    rng = np.random.default_rng(options.seed)
    key: list[dict[str, Any]] = []
    for i, turns in enumerate(contexts):
        all_of = [(name, place, text) for name in systems for place, text in enumerate(replies[name][i])]
        key.append({"context": turns, "replies": [all_of[j] for j in rng.permutation(len(all_of))]})
    lines = []
    for i, of_context in enumerate(key):
        lines += [f"{i + 1}.", *(f"    > {turn}" for turn in of_context["context"])]
        lines += [f"  {n}  {text}" for n, (_, _, text) in enumerate(of_context["replies"])]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "sheet.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {name: Path(str(value)).name for name, value in vars(options).items() if name != "job"}
    settings |= {"temperature": f"{decoding.temperature:g}"}
    settings |= {key: f"{getattr(responses, key):g}" for key in ("mmi_weight", "min_change", "rank_samples")}
    (FOLDER / "key.json").write_bytes(to_json({"settings": settings, "contexts": key}))


def report() -> str:
    """Markdown: the counts, and all that was read."""
    key = json.loads((FOLDER / "key.json").read_text(encoding="utf-8"))
    marks = (FOLDER / "marks.txt").read_text(encoding="utf-8").split()
    assert len(marks) == len(key["contexts"]), "a line of marks for each context"
    found = {system: np.zeros((len(marks), REPLIES), dtype="U1") for system in ("with", "without")}
    for i, (of_context, letters) in enumerate(zip(key["contexts"], marks, strict=True)):
        for (system, place, _), letter in zip(of_context["replies"], letters, strict=True):
            assert letter in MARKS, f"line {i + 1}: {letter}"
            found[system][i, place] = letter
    names = {"with": "with a latent", "without": "without"}
    settings = key["settings"]
    lines = [
        "# The reading test",
        "",
        "Written by `python benchmarks/reading.py report`; what was read and how is said at the top of that program. "
        f"{len(marks)} test contexts, {REPLIES} replies of each system to each, drawn by seed {settings['seed']}, marked in "
        "random order without knowing whose they were, by one reader, of the authors, who has seen replies of both before. "
        f"With a latent: chitchat-vhred, temperature {settings['temperature']}; without: chitchat-hred, temperature "
        f"{settings['baseline_temperature']}, at which its replies are about as varied; both ranked by mmi of weight "
        f"{settings['mmi_weight']} ({settings['rank_samples']} draws of the latent), any two of the five differing in at least "
        f"{settings['min_change']} of their words. Shares of replies, and their standard errors over contexts.",
        "",
        "| | fits | off-topic | broken | a reply that fits among the five | first reply fits | words a reply |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for system, letters in found.items():
        given = Counter(letters[letters != ""].tolist())
        total = sum(given.values())
        fits = letters == "f"
        share = estimate(fits.mean(1))
        cells = [f"{given['f']} of {total}, {share.value:.0%} ({share.error:.0%})"]
        cells += [f"{given[mark]} ({given[mark] / total:.0%})" for mark in "ob"]
        for values in (fits.any(1), fits[:, 0]):
            found_share = estimate(values.astype(float))
            cells.append(f"{found_share.value:.0%} ({found_share.error:.0%})")
        said = [text for one in key["contexts"] for whose, _, text in one["replies"] if whose == system]
        cells.append(f"{np.mean([len(text.split()) for text in said]):.1f}")
        lines.append(f"| {names[system]} | {' | '.join(cells)} |")
    paired = estimate((found["with"] == "f").mean(1) - (found["without"] == "f").mean(1))
    lines += ["", f"Difference in the share that fits, context by context: {paired.value:+.1%} ({paired.error:.1%}).", ""]
    for i, of_context in enumerate(key["contexts"]):
        lines += [f"## {i + 1}", "", "```text", *(f"> {turn}" for turn in of_context["context"]), ""]
        for system in found:
            mine = sorted((place, text) for name, place, text in of_context["replies"] if name == system)
            lines += [f"{names[system]:<14} {found[system][i, place]}  {text}" for place, text in mine]
        lines += ["```", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["draw", "report"])
    parser.add_argument("--model", default="chitchat-vhred")
    parser.add_argument("--baseline", help="a run of the same shape without a latent")
    parser.add_argument("--baseline_temperature", type=float, default=0.7)
    parser.add_argument("--data", help="prepared chitchat")
    parser.add_argument("--contexts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.job == "report":
        PAGE.write_text(report(), encoding="utf-8")
    elif not (options.baseline and options.data):
        parser.error("draw needs --baseline and --data")
    else:
        draw(options)


if __name__ == "__main__":
    main()
