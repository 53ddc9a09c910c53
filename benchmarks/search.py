"""The search for the models that come with the package: every run that was made, chosen on validation, in one table.

    vrae prepare chitchat --out corpora/chitchat
    vrae prepare chitchat --cleaning.sentences true --out corpora/sentences
    vrae prepare chitchat --vocab_size 3000 --out corpora/pieces-3000     # and 12000
    python benchmarks/search.py --data corpora --out runs/search NAME ...
    python benchmarks/search.py --table

Runs are named in benchmarks/search/runs.yaml: `base` is another run, `corpus` is one where it is not chitchat, and the rest is
what differs from the base, or from the defaults. Each is trained in `--out` (resumable: a second call goes on) and
measured on the validation split; benchmarks/search/NAME.json is its record, and what has a record is not measured again.
`--table` writes benchmarks/search/README.md, and docs/rate-distortion.png of the runs of CURVE, which differ in the rate alone.
The runs of ABLATIONS stand in docs/results.md too, where `benchmarks/results.py --tables` puts them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]

from vrae.config import BatchConfig, RunConfig, from_dict
from vrae.corpus.batches import Windows
from vrae.corpus.prepared import Corpus
from vrae.errors import UserError
from vrae.evaluation.likelihood import measure_information, measure_turns, summarise
from vrae.evaluation.quality import reconstruction
from vrae.files import to_json, write_file
from vrae.generation.pipeline import Pipeline
from vrae.training.trainer import train

FOLDER = Path(__file__).parent / "search"
MAX_TURN_TOKENS = 32  # of every turn that is measured, whatever a run was trained on
K, TURNS, REBUILT = 50, 1000, 500
CURVE = ("curve-2", "curve-4", "curve-8", "curve-16", "rate-30", "curve-45")
PICTURE = Path(__file__).parents[1] / "docs" / "rate-distortion.png"
ABLATIONS = {  # name of a table: its runs, and what they are; the first is what the others are held against
    "turns": {
        "turns-3": "3 turns of context",
        "turns-0": "none",
        "turns-1": "1",
        "turns-9": "9",
    },
    "responder": {
        "turns-3": "the recipe of chitchat-vhred",
        "turns-3-no-control": "no target rate: a weight that rises to 1 in 1,000 steps",
        "turns-3-no-context-dropout": "no dropout of context turns",
        "turns-3-no-dropout": "no dropout of values",
        "turns-3-no-speakers": "no marks of who speaks",
        "turns-3-no-latent": "no latent",
    },
    "space": {
        "space": "the recipe of chitchat-vrae",
        "space-no-control": "no target rate: a weight that rises to 1 in 1,000 steps",
        "space-no-mixture": "prior N(0, I)",
        "space-no-word-dropout": "no dropout of words",
        "space-no-dropout": "no dropout of values",
        "space-no-sentences": "turns alone, not their sentences",
    },
    "words": {
        "chitchat-vrae": "the recipe of chitchat-vrae",
        "chitchat-vrae-no-word-dropout": "no dropout of words",
    },
    "latents": {
        "rate-8-mixture": "32 dimensions",
        "latent-8": "8",
        "latent-16": "16",
        "latent-128": "128",
    },
    "shape": {
        "lm": "320 hidden units, one layer, output tied, 6,000 pieces, turns of at most 32, Muon",
        "lm-hidden-224": "224 hidden units",
        "lm-hidden-448": "448 hidden units",
        "lm-two-layers": "two layers",
        "lm-untied": "output not tied to the embeddings",
        "lm-pieces-3000": "3,000 pieces, turns of at most 36",
        "lm-pieces-12000": "12,000 pieces, turns of at most 31",
        "lm-48": "turns of at most 48",
        "lm-96": "turns of at most 96",
        "lm-sentences": "turns, their messages and sentences",
        "lm-adamw": "AdamW, learning rate 0.005",
    },
    "lengths": {
        "chitchat-vrae-bound": "chitchat-vrae-bound, turns of at most 32",
        "chitchat-rnnlm": "chitchat-rnnlm, 32",
        "rnnlm-longer": "chitchat-rnnlm, 32",
        "rnnlm-48": "chitchat-rnnlm, 48",
    },
    "curve": {name: f"target {name.rpartition('-')[2]}" for name in CURVE},
}


def config_of(name: str, runs: dict[str, dict[str, Any]]) -> tuple[RunConfig, str]:
    """The configuration of a run, with that of its base under it, and the name of its corpus."""
    values: dict[str, dict[str, Any]] = {}
    corpus = ""
    while name:
        changes = dict(runs[name])
        name = changes.pop("base", "")
        of_this = changes.pop("corpus", "")
        corpus = corpus or of_this
        for key, value in changes.items():
            group, _, setting = key.partition(".")
            values.setdefault(group, {}).setdefault(setting, value)
    config: RunConfig = from_dict(RunConfig, values, "runs.yaml")
    return config, corpus or "chitchat"


def validation_turns(corpus: Corpus, common: Corpus, context_turns: int) -> Windows:
    """The validation turns of `corpus` that have at most 32 tokens in `common`: the same turns in pieces of another size."""
    turns_N = Windows(common["validation"], BatchConfig(tokens=4096, max_turn_tokens=MAX_TURN_TOKENS), 0).target_N
    windows = Windows(corpus["validation"], BatchConfig(tokens=4096, max_turn_tokens=2 * MAX_TURN_TOKENS), context_turns)
    found_N = np.isin(windows.target_N, turns_N)
    if len(corpus["validation"].turns) != len(common["validation"].turns) or found_N.sum() != len(turns_N):
        raise UserError(f"{corpus.path}: not the turns of {common.path} in other pieces. Prepare both from the same source")
    for name in ("target_N", "start_N", "cost_N"):
        setattr(windows, name, getattr(windows, name)[found_N])
    windows.tokens = int(windows.cost_N.sum())
    return windows


def make(config: RunConfig, corpus: Corpus, common: Corpus, run: Path, path: Path) -> None:
    """Trains on `corpus` in `run`, and measures on the turns of `common` into `path` where nothing is."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, threads=1))
    seconds = time.process_time()
    result = train(config, corpus, run, resume=True)
    seconds = time.process_time() - seconds
    if path.is_file():
        return
    pipeline = Pipeline.load(run)
    model = pipeline.model
    K_turns, k = model.config.context_turns, K if model.config.latent_size else 1
    windows = validation_turns(corpus, common, K_turns)
    found = measure_turns(model, windows, limit=TURNS, k=k)
    bound = summarise(found, measure_information(model, windows, limit=TURNS), windows, k)
    record = {
        "config": dataclasses.asdict(config),
        "corpus": corpus.fingerprint,
        "torch": torch.__version__,
        "step": result.step,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(seconds),
        **{key: value for key, value in dataclasses.asdict(bound).items() if "dimension" not in key},
        "nll_iw_N": [round(nats, 3) for nats in found.nll_iw_N.tolist()],
    }
    if model.config.latent_size:
        for longest in (8, 16):
            short = Windows(corpus["validation"], BatchConfig(tokens=4096, max_turn_tokens=longest), K_turns)
            quality = reconstruction(pipeline, (batch for _, batch in short.in_order(REBUILT)))
            record |= {f"exact_{longest}": quality.exact, f"bleu_{longest}": quality.bleu}
    write_file(path, to_json(record))


def table(records: dict[str, dict[str, Any]], what: dict[str, str]) -> str:
    """Markdown: a row for each run, those of a number of context turns together, the lowest nll_iw first."""
    parts = [
        "# The search for the shipped models\n\nWritten by `python benchmarks/search.py --table`. Validation turns of at most "
        f"{MAX_TURN_TOKENS} tokens, an even sample of {TURNS:,}, the same for all; nats per turn, nll_iw with k = {K} and its "
        "standard error over turns. Exact: share of turns of at most 8 tokens that come back word for word from the posterior "
        "mean; BLEU-4 of those of at most 16. One seed; what a run does not name is as in its base."
    ]
    for turns in sorted({record["config"]["model"]["context_turns"] for record in records.values()}):
        parts.append(
            f"\n## {turns} turns of context\n\n"
            "| run | what | steps | million weights | nll_iw | -elbo | rate | active | aggregated KL | exact, 8 | BLEU, 16 |\n"
            "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
        )
        of_turns = {name: r for name, r in records.items() if r["config"]["model"]["context_turns"] == turns}
        for name, r in sorted(of_turns.items(), key=lambda item: float(item[1]["nll_iw"])):
            Z = r["latent_size"]
            latent = f"{r['aggregated_kl']:.2f} | {r['exact_8']:.1%} | {r['bleu_16']:.3f}" if Z else "- | - | -"
            parts.append(
                f"| {name} | {what[name]} | {r['step']:,} | {r['parameters'] / 1e6:.2f} | {r['nll_iw']:.2f} "
                f"({r['nll_iw_error']:.2f}) | {-r['elbo']:.2f} | {r['rate']:.2f} | {r['active_units']}/{Z} | {latent} |"
            )
    return "\n".join(parts) + "\n"


def ablation(runs: dict[str, str], records: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row for each run that there is a record of. `more`: nats per turn above the first, in pairs of turns."""
    lines = [
        "| | steps | nll_iw | more | -elbo | rate | active | distortion | exact, 8 | BLEU, 16 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    first = records.get(next(iter(runs)), {}).get("nll_iw_N")
    for name, r in ((name, records[name]) for name in runs if name in records):
        more = "-"
        if first and "nll_iw_N" in r and name != next(iter(runs)):
            more_N = np.array(r["nll_iw_N"]) - np.array(first)
            more = f"{more_N.mean():+.2f} ({more_N.std(ddof=1) / len(more_N) ** 0.5:.2f})"
        latent = f"{r['rate']:.2f} | {r['active_units']}/{r['latent_size']}" if r["latent_size"] else "- | -"
        rebuilt = f"{r['exact_8']:.1%} | {r['bleu_16']:.3f}" if r["latent_size"] else "- | -"
        lines.append(
            f"| {runs[name]} | {r['step']:,} | {r['nll_iw']:.2f} | {more} | {-r['elbo']:.2f} | {latent} "
            f"| {r['distortion']:.2f} | {rebuilt} |"
        )
    return "\n".join(lines)


def stored(runs: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The records that there are of these runs."""
    paths = {name: FOLDER / f"{name}.json" for name in runs}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}


def draw(records: Sequence[dict[str, Any]], baseline: float) -> None:
    """Distortion, -elbo and nll_iw over the rate. `baseline`: nll of the model without a latent; nats per turn."""
    from vrae.apps.picture import BLUE, GREY, ORANGE, VERMILION, picture

    ordered = sorted(records, key=lambda record: float(record["rate"]))
    rate = [record["rate"] for record in ordered]
    with picture(PICTURE, (9, 6)) as figure:
        axes = figure.subplots()
        for name, colour, values in (
            ("-elbo = distortion + rate", VERMILION, [-record["elbo"] for record in ordered]),
            (f"importance-weighted bound, k = {K}", BLUE, [record["nll_iw"] for record in ordered]),
            ("distortion", ORANGE, [record["distortion"] for record in ordered]),
        ):
            axes.plot(rate, values, "o-", color=colour, label=name)
        axes.axhline(baseline, color=GREY, ls="--", label="the same without a latent")
        axes.plot([0, rate[-1]], [baseline, baseline - rate[-1]], color=GREY, ls=":", label="each nat of rate saves one")
        axes.set(title="What the latent carries, and what it costs (validation)", xlabel="rate, nats per turn")
        axes.set_ylabel("nats per turn")
        axes.legend(loc="lower left", fontsize=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the prepared corpora")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--table", action="store_true", help="write the table")
    parser.add_argument("names", nargs="*", help="of runs.yaml")
    options = parser.parse_intermixed_args()
    runs = yaml.safe_load((FOLDER / "runs.yaml").read_text())
    if unknown := set(options.names) - runs.keys():
        parser.error(f"no run {', '.join(sorted(unknown))} in runs.yaml; there are {', '.join(runs)}")
    if not (options.names or options.table):
        parser.error("nothing to do: name runs, or give --table")
    if options.names and not (options.data and options.out):
        parser.error("a run needs --data and --out")
    torch.set_num_threads(1)
    for name in options.names:
        config, corpus = config_of(name, runs)
        try:
            corpora = Corpus(options.data / corpus), Corpus(options.data / "chitchat")
            make(config, *corpora, options.out / name, FOLDER / f"{name}.json")
        except UserError as error:
            parser.error(str(error))
    if options.table:
        found = stored(runs)
        changes = {
            name: ", ".join(f"{key.split('.')[-1]} {value}" if key != "base" else value for key, value in runs[name].items())
            for name in found
        }
        (FOLDER / "README.md").write_text(table(found, changes))
        if curve := [found[name] for name in CURVE if name in found]:
            draw(curve, found["lm"]["nll_iw"])


if __name__ == "__main__":
    main()
