"""Every remedy against posterior collapse on chitchat, the same budget each, in one table.

    vrae prepare chitchat --out corpora/chitchat
    python benchmarks/remedies.py --data corpora/chitchat --out runs/remedies

Trains each configuration of configs/remedies (1,500 steps of 1,024 tokens), measures it on even samples of the test split, and
prints two Markdown tables: turns without context, and replies. What is trained or measured already is not done again, so it can
be stopped and started. `--trained` measures what is finished and trains nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from vrae.apps.cli import main as vrae
from vrae.apps.evaluate import evaluate
from vrae.apps.parser import configs
from vrae.config import EvaluateConfig
from vrae.corpus.batches import Windows
from vrae.corpus.prepared import Corpus
from vrae.evaluation.quality import draw_samples, real_turns
from vrae.generation.pipeline import Pipeline
from vrae.training.judge import JUDGE, MIRROR, reverse_perplexity, train_language_model

MEASURED = EvaluateConfig(split="test", k=50, max_turns=500, samples=1000, paths=0, contexts=0)
SAMPLES = 2000  # for the reverse perplexity
# The judges differ in width from the models, so that none of them reads its own text.
READER = dataclasses.replace(
    JUDGE,
    model=dataclasses.replace(JUDGE.model, hidden_size=320),
    batches=dataclasses.replace(JUDGE.batches, tokens=1024, max_turn_tokens=24),
    train=dataclasses.replace(JUDGE.train, max_steps=1200, validate_every=300, checkpoint_every=300),
)
SMALL_MIRROR = dataclasses.replace(
    MIRROR,
    model=dataclasses.replace(MIRROR.model, embedding_size=128, hidden_size=192),
    batches=dataclasses.replace(MIRROR.batches, tokens=1024),
    train=dataclasses.replace(MIRROR.train, max_steps=250, checkpoint_every=250),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="prepared chitchat")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and results")
    parser.add_argument("--trained", action="store_true", help="measure what is trained, train nothing")
    parser.add_argument("names", nargs="*", help="these alone, of configs/remedies")
    options = parser.parse_args()
    corpus, known = Corpus(options.data), [Path(name).name for name in configs() if name.startswith("remedies/")]
    names = [name for name in known if name in (options.names or known)]
    reader = options.out / "reader"
    if not (reader / "done").exists():
        train_language_model(corpus, reader, READER)
        (reader / "done").touch()
    results = {}
    for name in names:
        run, result = options.out / name, options.out / f"{name}.json"
        if not result.exists():
            if not options.trained:
                resume = ["--resume"] if (run / "run.json").exists() else []
                arguments = ["--config", f"remedies/{name}", "--data", options.data, "--out", str(run), *resume]
                if code := vrae(["train", *arguments]):
                    raise SystemExit(code)
            if not finished(run):
                continue
            print(f"measuring {name}", flush=True)
            result.write_text(json.dumps(measured(run, corpus, str(reader))))
        results[name] = json.loads(result.read_text())
    print(table({name: values for name, values in results.items() if not name.startswith("reply")}))
    print(table({name: values for name, values in results.items() if name.startswith("reply")}))


def finished(run: Path) -> bool:
    """Whether a run has made all its steps."""
    try:
        last = (run / "checkpoints" / "last").read_text()
        state = json.loads((run / "checkpoints" / last / "trainer.json").read_text())
    except OSError:
        return False
    return bool(state["step"] == state["max_steps"] == state["validated"])


def measured(run: Path, corpus: Corpus, reader: str) -> dict[str, object]:
    """The report of a run as JSON values, with the reverse perplexity."""
    pipeline = Pipeline.load(run)
    report = evaluate(pipeline, corpus, dataclasses.replace(MEASURED, judge=reader), run=run).as_dict()
    batches = dataclasses.replace(READER.batches, max_turn_tokens=report["provenance"]["max_turn_tokens"])
    windows = Windows(corpus["test"], batches, pipeline.model.config.context_turns)
    samples = draw_samples(pipeline, windows, SAMPLES).texts
    reverse = reverse_perplexity(samples, real_turns(windows, pipeline.tokenizer, 2000), pipeline.tokenizer, SMALL_MIRROR)
    return {**report, "reverse_perplexity": reverse.value}


def table(results: dict[str, dict]) -> str:  # type: ignore[type-arg]
    """A row for each run, the lowest nll_iw first."""
    lines = [
        "| configuration | nll_iw | -elbo | rate | MI | active | BLEU | exact | forward ppl | reverse ppl | collapse |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, values in sorted(results.items(), key=lambda item: item[1]["nll_iw"]):
        figures = {key: f["value"] for section in values["sections"].values() for key, f in section["figures"].items()}
        Z = values["latent_size"]
        cells = [
            f"[{name}](../configs/remedies/{name}.yaml)",
            f"{values['nll_iw']:.2f}",
            f"{-values['elbo']:.2f}",
            f"{values['rate']:.2f}",
            f"{values['mutual_information']:.2f}",
            f"{values['active_units']}/{Z}" if Z else "-",
            f"{100 * figures['reconstruction_bleu']:.1f}" if Z else "-",
            f"{100 * figures['reconstruction_exact']:.1f}%" if Z else "-",
            f"{figures['samples_forward_perplexity']:.0f}",
            f"{values['reverse_perplexity']:.0f}",
            values["collapse"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
