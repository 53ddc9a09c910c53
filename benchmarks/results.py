"""The shipped models on the test split, beside models of the same shape without a latent: the tables of docs/results.md.

    vrae prepare chitchat --out corpora/chitchat
    vrae prepare chitchat --cleaning.sentences true --out corpora/sentences
    python benchmarks/search.py --data corpora --out runs \
        chitchat-rnnlm rnnlm-longer chitchat-vrae-bound chitchat-vrae chitchat-hred chitchat-vhred
    python benchmarks/results.py --data corpora/chitchat --runs runs
    python benchmarks/results.py --tables

The models that come with the package are measured as they come, in half precision; what that costs is the difference of their
bound to that of their runs.

Of each: the bound on an even sample of the test turns of at most 32 tokens, importance-weighted with k = 500, the same turns
for all, in nats; of what reconstructs, how many of the turns of at most 8 tokens come back word for word and BLEU-4 of those of
at most 16, from the posterior mean, greedily and by the beam search of `vrae reconstruct`; of autoencoders, the perplexity
under chitchat-rnnlm of 2,000 turns drawn from the prior, by the model's own distribution, at temperature 0.5 with top-p 0.9,
and by that beam search, the default of `vrae sample`, beside that of as many real ones. benchmarks/results/NAME.json is the
record, and what it has is not measured again. `--tables` puts the tables under their marks in docs/results.md and README.md.
"""

from __future__ import annotations

import argparse
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import dailydialog
import numpy as np
import search
import torch
from dailydialog_protocol import Records
from dailydialog_report import summary
from search import ABLATIONS, ablation

from vrae.bundled import folder
from vrae.config import GREEDY, SEARCH, BatchConfig, DecodingConfig
from vrae.corpus.batches import Windows
from vrae.corpus.prepared import Corpus
from vrae.errors import UserError
from vrae.evaluation.likelihood import measure, measure_information, measure_turns, summarise
from vrae.evaluation.quality import ANCESTRAL, draw_samples, perplexity, real_turns, reconstruction
from vrae.files import to_json, write_file
from vrae.generation.pipeline import Pipeline, load

RECORDS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
PAGES = ("docs/results.md", "README.md")
BASELINE = {  # of the same shape, without a latent
    "chitchat-vrae-bound": "rnnlm-longer",
    "chitchat-vrae": "chitchat-rnnlm",
    "chitchat-vhred": "chitchat-hred",
}
NAMES = list(dict.fromkeys([*BASELINE.values(), *BASELINE]))
MAX_TURN_TOKENS, TURNS, K, SAMPLES = 32, 1000, 500, 2000
DRAWN = {"forward": ANCESTRAL, "forward_drawn": DecodingConfig(), "forward_search": SEARCH}


def measured(name: str, pipeline: Pipeline, corpus: Corpus) -> dict[str, Any]:
    """What a model is, and its bound."""
    model = pipeline.model
    Z = model.config.latent_size
    windows = Windows(corpus["test"], BatchConfig(tokens=4096, max_turn_tokens=MAX_TURN_TOKENS), model.config.context_turns)
    k = K if Z else 1
    found = measure_turns(model, windows, limit=TURNS, k=k)
    bound = summarise(found, measure_information(model, windows), windows, k)
    return {
        "name": name,
        "step": pipeline.info.get("step"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "latent_size": Z,
        "corpus": corpus.fingerprint,
        "torch": torch.__version__,
        "turns": bound.turns,
        "tokens": bound.tokens,
        "k": k,
        "elbo": bound.elbo,
        "rate": bound.rate,
        "active_units": bound.active_units,
        "aggregated_kl": bound.aggregated_kl,
        "effective_samples": bound.effective_samples,
        "bits_per_token": bound.bits_per_token,
        "nll_iw_N": found.nll_iw_N.tolist(),
    }


def rebuilt(pipeline: Pipeline, corpus: Corpus) -> dict[str, Any]:
    """What comes back from the posterior mean."""
    record: dict[str, Any] = {}
    turns = pipeline.model.config.context_turns
    of = {longest: Windows(corpus["test"], BatchConfig(tokens=4096, max_turn_tokens=longest), turns) for longest in (8, 16)}
    for how, decoding in (("", GREEDY), ("_search", SEARCH)):
        quality = {most: reconstruction(pipeline, (batch for _, batch in of[most].in_order()), decoding) for most in of}
        record |= {f"exact_8{how}": quality[8].exact, "turns_8": quality[8].turns}
        record |= {f"bleu_16{how}": quality[16].bleu, "turns_16": quality[16].turns, "bleu": quality[16].bleu_signature}
    return record


def drawn(pipeline: Pipeline, judge: Pipeline, corpus: Corpus) -> dict[str, Any]:
    """The perplexity of what the prior gives, and of real turns."""
    windows = Windows(corpus["test"], BatchConfig(tokens=4096, max_turn_tokens=MAX_TURN_TOKENS), 0)
    record: dict[str, Any] = {"forward_real": perplexity(judge, real_turns(windows, pipeline.tokenizer, SAMPLES)).value}
    for key, decoding in DRAWN.items():
        if decoding is not SEARCH or pipeline.model.config.latent_size:  # without a latent it is one text
            found = perplexity(judge, draw_samples(pipeline, windows, SAMPLES, decoding=decoding).texts)
            record |= {key: found.value, f"{key}_error": found.error}
    return record


def half_precision(name: str, run: Pipeline, corpus: Corpus) -> dict[str, float]:
    """-elbo of the weights that come with the package less that of their run, the same turns and draws; nats per turn."""
    shipped, turns = load(name), run.model.config.context_turns
    windows = Windows(corpus["test"], BatchConfig(tokens=4096, max_turn_tokens=MAX_TURN_TOKENS), turns)
    elbo = [measure(pipeline.model, windows, limit=TURNS, k=1).elbo for pipeline in (shipped, run)]
    return {"half_precision": elbo[1] - elbo[0]}


def tables(records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Markdown by name of the table."""
    bounds = [
        "| | million weights | nll_iw, nats per turn | of the baseline's | -elbo | rate | active | bits per token |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    text = [
        "| | rate | exact, at most 8 tokens: greedy | searched | BLEU-4, at most 16: greedy | searched "
        "| forward perplexity: own distribution | at T 0.5, top-p 0.9 | searched |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, record in records.items():
        nll_N, Z = np.array(record["nll_iw_N"]), record["latent_size"]
        ratio = "-"
        if (baseline := BASELINE.get(name)) in records:
            against_N = np.array(records[baseline]["nll_iw_N"])
            value = nll_N.mean() / against_N.mean()
            error = (nll_N - value * against_N).std(ddof=1) / np.sqrt(len(nll_N)) / against_N.mean()
            ratio = f"{value:.4f} ({error:.4f})"
        latent = f"{record['rate']:.2f} | {record['active_units']} of {Z}" if Z else "- | -"
        bounds.append(
            f"| {name} | {record['parameters'] / 1e6:.2f} | {nll_N.mean():.2f} | {ratio} | {-record['elbo']:.2f} | {latent} "
            f"| {record['bits_per_token']:.3f} |"
        )
        if "forward" in record:
            cells = [f"{record['rate']:.2f}" if Z else "-"]
            cells += [f"{record[key]:.1%}" if key in record else "-" for key in ("exact_8", "exact_8_search")]
            cells += [f"{record[key]:.3f}" if key in record else "-" for key in ("bleu_16", "bleu_16_search")]
            for key in DRAWN:
                whole = f"{record[key]:.1f} ({record[f'{key}_error']:.1f})" if key in record else ""
                cells.append(f"{whole}, {record[key] / record['forward_real']:.2f}" if whole else "-")
            text.append(f"| {name} | {' | '.join(cells)} |")
    return {"bounds": "\n".join(bounds), "text": "\n".join(text), "results": short(records)}


def short(records: dict[str, dict[str, Any]]) -> str:
    """Markdown: the models with a latent, beside those without."""
    rows = [
        "| on 1,000 test turns | bound, nats per turn | without a latent | rate | exact, at most 8 tokens "
        "| BLEU-4, at most 16 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in BASELINE.keys() & records.keys():
        found = records[name]
        with_without = (np.mean(records[which]["nll_iw_N"]) for which in (name, BASELINE[name]))
        rows.append(
            f"| {name} | {' | '.join(f'{nats:.2f}' for nats in with_without)} | {found['rate']:.1f} "
            f"| {found['exact_8_search']:.0%} | {found['bleu_16_search']:.2f} |"
        )
    return "\n".join([*rows[:2], *sorted(rows[2:])])


def fill(page: str, name: str, table: str) -> str:
    """The page with the table under `<!-- NAME -->` replaced."""
    page, count = re.subn(rf"(?<=<!-- {name} -->\n)(\|.*\n)*", lambda _: table + "\n", page)
    assert count == 1, f"there must be one <!-- {name} -->"
    return page


def stored() -> dict[str, dict[str, Any]]:
    return {name: json.loads(path.read_text()) for name in NAMES if (path := RECORDS / f"{name}.json").is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="prepared chitchat")
    parser.add_argument("--runs", type=Path, help="folder of the runs, each under the name of its configuration")
    parser.add_argument("--tables", action="store_true", help="write the tables of what is recorded, measure nothing")
    parser.add_argument("names", nargs="*", help="these alone")
    options = parser.parse_intermixed_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if not options.tables:
        if not (options.data and options.runs):
            parser.error("--data and --runs are needed, but for --tables")
        torch.set_num_threads(1)
        names = options.names or NAMES
        if missing := [name for name in dict.fromkeys(["chitchat-rnnlm", *names]) if not (options.runs / name).is_dir()]:
            parser.error(f"--runs {options.runs}: no run of {', '.join(missing)} there. Make it by benchmarks/search.py")
        try:
            corpus = Corpus(options.data)
            judge, *runs = (Pipeline.load(options.runs / name) for name in ["chitchat-rnnlm", *names])
        except UserError as error:
            parser.error(str(error))
        RECORDS.mkdir(exist_ok=True)
        for name, run in zip(names, runs, strict=True):
            shipped = folder(name) is not None
            pipeline = load(name) if shipped else run
            Z, turns = pipeline.model.config.latent_size, pipeline.model.config.context_turns
            for key, wanted, find in (
                ("nll_iw_N", True, partial(measured, name, pipeline, corpus)),
                ("exact_8_search", Z, partial(rebuilt, pipeline, corpus)),
                ("forward_search" if Z else "forward", not turns, partial(drawn, pipeline, judge, corpus)),
                ("half_precision", shipped, partial(half_precision, name, run, corpus)),
            ):
                record = stored().get(name, {})
                if wanted and key not in record:
                    print(f"measuring {name}: {key}", flush=True)
                    write_file(RECORDS / f"{name}.json", to_json({**record, **find()}))
    made = tables(stored()) | {name: ablation(runs, search.stored(runs)) for name, runs in ABLATIONS.items()}
    made["dailydialog"] = summary(Records(dailydialog.RECORDS))
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for name in re.findall(r"<!-- (\w+) -->\n\|", text):
            text = fill(text, name, made[name])
        (ROOT / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
