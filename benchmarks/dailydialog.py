"""Replies to DailyDialog by the protocol of the published tables: every configuration, several seeds, and what needs no model.

    python benchmarks/dailydialog.py --data DAILYDIALOG --out runs/dailydialog
    python benchmarks/dailydialog.py --data DAILYDIALOG --out runs/dailydialog --only hred vhred --seeds 1 --minutes 10
    python benchmarks/dailydialog.py --report

DAILYDIALOG holds train.txt, validation.txt and test.txt, a dialogue a line, turns ended by __eou__. The data are not free (CC
BY-NC-SA 4.0), and so no models trained on them are given away.

1. Prepares the corpus: the turns as dailydialog_protocol has them, in 10,000 sub-words, as many as the papers had words. Words
   stand apart, so no sub-word spans two of them, and sub-words mapped back give the same words.
2. Trains each of configs/dailydialog with each seed. What is finished is not trained again, what was interrupted goes on.
3. Draws ten replies to an even sample of validation contexts under every setting of `settings` with the first of the seeds, and
   chooses one for all: the highest F1 (legacy) of those whose inter-distinct-1 and -2 are 0.33 and 0.60 or more, just above all
   of the published table; if none is, the one with the highest inter-distinct-2.
4. Draws ten replies to every test context under that setting and under the papers' own (each latent decoded greedily), and
   scores them, `standard` beside `legacy`.
5. Scores the baselines of dailydialog_baselines, which read no model, in the same way.

benchmarks/dailydialog holds a JSON file for each training run and each system, seed and setting, and what is there is not made
again (to make it anew give other `--records`); `--report` makes its README.md and docs/dailydialog.png of them. One thread; on
a CPU a run takes about 11 to 20 minutes to train and 8 to measure.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import yaml  # type: ignore[import-untyped]
from dailydialog_baselines import BASELINES, ONE_SEED, Material, longest, same_lengths
from dailydialog_protocol import (
    AS_IT_IS,
    REPLIES,
    Context,
    Dialogue,
    Records,
    choose,
    contexts_of,
    even_sample,
    read_corpus,
    score,
    text,
)
from dailydialog_report import write_report

from vrae.apps.parser import configs
from vrae.config import DecodingConfig, PrepareConfig, RunConfig, SourceConfig, from_dict
from vrae.corpus.prepared import Corpus, prepare
from vrae.errors import UserError
from vrae.evaluation.bleu import words
from vrae.evaluation.dialogue import Protocol
from vrae.generation.pipeline import Pipeline
from vrae.generation.responses import draw_texts
from vrae.training.hardware import pick_device
from vrae.training.trainer import train

RECORDS = Path(__file__).parent / "dailydialog"
PICTURE = Path(__file__).parents[1] / "docs" / "dailydialog.png"
MOST_PIECES = 40  # of a reply
_CONTEXTS = 128  # replied to side by side


@dataclass(frozen=True)
class Setting:
    """How ten replies are drawn.

    Args:
        decoding: of each, once its latent is known.
        latents: how the latents are drawn from p(z | context).
        candidates: for each reply wanted so many are drawn, and the longest are kept. More than 1 is a preference for length
            that no model asked for; `random` of the same length is the baseline to hold against it.
    """

    decoding: DecodingConfig
    latents: Literal["independent", "stratified", "spread"] = "independent"
    candidates: int = 1

    @property
    def name(self) -> str:
        d = self.decoding
        how = f"beam {d.beams}" if d.beams else f"T {d.temperature:g}" if d.temperature else "greedy"
        parts = [how, *([f"top-p {d.top_p:g}"] if d.temperature and not d.beams and d.top_p < 1 else [])]
        parts += [self.latents] * (self.latents != "independent")
        parts += [f"longest of {self.candidates}"] * (self.candidates > 1)
        return ", ".join(parts)


def _decoding(temperature: float, top_p: float = 1.0, beams: int = 0) -> DecodingConfig:
    return DecodingConfig(
        temperature=temperature, top_p=top_p, beams=beams, length_penalty=float(beams > 0), max_tokens=MOST_PIECES
    )


PAPERS = Setting(_decoding(0.0))


def settings(latent: bool) -> list[Setting]:
    """All that are tried on the validation; without a latent, greedy decoding gives the same reply ten times."""
    warm = [_decoding(0.5), _decoding(0.7), _decoding(1.0, 0.9), _decoding(1.0)]
    candidates = (1, 2, 3)
    if not latent:
        drawn = [Setting(decoding, candidates=c) for decoding in warm for c in candidates]
        return [PAPERS, Setting(_decoding(0.0, beams=REPLIES)), *drawn]
    greedy = [Setting(PAPERS.decoding, how, c) for how in ("independent", "spread") for c in candidates]
    return [*greedy, *(Setting(decoding, "stratified", c) for decoding in warm for c in candidates)]


def main(arguments: Sequence[str] | None = None) -> None:
    models = [Path(name).name for name in configs() if name.startswith("dailydialog/")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train.txt, validation.txt and test.txt")
    parser.add_argument("--out", type=Path, help="corpus and runs")
    parser.add_argument("--records", type=Path, default=RECORDS, help="what is found, and the report; %(default)s")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="of the report; %(default)s")
    parser.add_argument(
        "--only", nargs="+", choices=[*BASELINES, *models], metavar="NAME", help=", ".join([*BASELINES, *models])
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--minutes", type=float, help="train each run for so long, not for the steps of its configuration")
    parser.add_argument("--max_steps", type=int, help="train each run for so many steps")
    parser.add_argument("--vocab_size", type=int, default=10_000)
    parser.add_argument("--chosen_on", type=int, default=300, help="validation contexts that the setting is chosen on")
    parser.add_argument("--contexts", type=int, default=0, help="test contexts, an even sample; 0: all, as published")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="make the report of what there is, nothing else")
    options = parser.parse_args(arguments)
    if not options.report:
        if not (options.data and options.out):
            parser.error("--data and --out are needed, but for --report")
        torch.set_num_threads(options.threads)
        try:
            table = Table(options)
        except UserError as error:
            parser.error(str(error))
        for name in options.only or [*BASELINES, *models]:
            if name in models:
                table.models(name, options.seeds)
                continue
            for seed in [min(options.seeds)] if name in ONE_SEED else options.seeds:
                table.baseline(name, seed)
    elif not Records(options.records).all("test"):
        parser.error(f"there is no record of a row in {options.records / 'test'}: nothing to report")
    write_report(Records(options.records), options.picture)


class Table:
    """What its rows are made of; `options` are those of the command line."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.records = options, Records(options.records)
        self.dialogues = read_corpus(options.data)
        test = contexts_of(self.dialogues["test"], self.dialogues["train"])
        self.test = even_sample(test, options.contexts or len(test))
        self.validation = contexts_of(self.dialogues["validation"], self.dialogues["train"])
        self.material = Material(self.dialogues["train"], self.validation)

    @cached_property
    def corpus(self) -> Corpus:
        return prepared(self.dialogues, self.options.out, self.options.vocab_size)

    def baseline(self, name: str, seed: int) -> None:
        draw = partial(BASELINES[name], self.material, self.test, seed)
        self._row("test", name, seed, "", lambda: score(self.test, draw(), name))

    def models(self, name: str, seeds: Sequence[int]) -> None:
        """Trains with each seed, chooses one setting for all by the first that was run, and scores it and the papers' own."""
        found = {seed: self._trained(name, seed) for seed in seeds}
        first = min((row["seed"] for row in self.records.all("validation") if row["system"] == name), default=seeds[0])
        judge = self._trained(name, first)
        tried = {setting.name: setting for setting in settings(bool(run_config(name, 1, self.options).model.latent_size))}
        sample = even_sample(self.validation, self.options.chosen_on)
        for setting in tried.values():
            find = partial(self._measured, judge, sample, setting, ["legacy"])
            self._row("validation", name, first, setting.name, find)
        chosen = tried[choose(self.records.all("validation"), name)]
        for (seed, model), setting in product(found.items(), dict.fromkeys([PAPERS, chosen])):
            find = partial(self._measured, model, self.test, setting, ["legacy", "standard"])
            self._row("test", name, seed, setting.name, find)

    def _trained(self, name: str, seed: int) -> Model:
        run = self.options.out / "runs" / f"{name}.{seed}"
        config = run_config(name, seed, self.options)
        record = self.records.get(f"training/{name}.{seed}", lambda: trained(config, self.corpus, run))
        if _lasting(record["config"]) != _lasting(dataclasses.asdict(config)):
            raise SystemExit(f"{run} was trained with other settings. Choose another --out and --records")
        return Model(run, seed, self.options.device)

    def _measured(
        self, model: Model, contexts: Sequence[Context], setting: Setting, protocols: Sequence[Protocol]
    ) -> dict[str, Any]:
        start = time.process_time()
        replies = model.replies(contexts, setting)
        seconds = time.process_time() - start
        alone = same_lengths(self.material, replies, model.seed)
        return {
            "examples": replies[len(replies) // 2],
            "seconds": seconds,
            **score(contexts, replies, setting.name, protocols),
            "lengths_alone": score(contexts, alone, "random turns of the same lengths", protocols),
        }

    def _row(self, kind: str, name: str, seed: int, setting: str, find: Callable[[], dict[str, Any]]) -> None:
        place = f"{kind}/{'.'.join(filter(None, (name, str(seed), setting.replace(', ', '_').replace(' ', '-'))))}"

        def row() -> dict[str, Any]:
            print(place, file=sys.stderr, flush=True)
            return {"system": name, "seed": seed, "setting": setting, **find()}

        self.records.get(place, row)


def prepared(dialogues: dict[str, list[Dialogue]], out: Path, vocab_size: int) -> Corpus:
    """The corpus in `out`/corpus, made where there is none."""
    folder, source = out / "corpus", out / "dialogues.jsonl"
    if not (folder / "manifest.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        with open(source, "w", encoding="utf-8") as file:
            for split, some in dialogues.items():
                file.writelines(json.dumps({"turns": [text(turn) for turn in one], "split": split}) + "\n" for one in some)
        prepare(PrepareConfig(SourceConfig(str(source), layout="turns"), AS_IT_IS, vocab_size=vocab_size), folder, quiet=True)
        source.unlink()
    return Corpus(folder)


def run_config(name: str, seed: int, options: argparse.Namespace) -> RunConfig:
    path = configs()[f"dailydialog/{name}"]
    config: RunConfig = from_dict(RunConfig, yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    changed: dict[str, Any] = {"seed": seed, "threads": options.threads, "device": options.device}
    if options.max_steps:
        changed |= {"max_steps": options.max_steps}
    elif options.minutes:
        changed |= {"max_steps": 0, "max_minutes": options.minutes}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changed))


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    """A run's settings but for those that say where it is trained."""
    return {**config, "train": {key: value for key, value in config["train"].items() if key not in ("device", "threads")}}


def trained(config: RunConfig, corpus: Corpus, run: Path) -> dict[str, Any]:
    """Trains a run to its end and says how it came out."""
    print(f"training {run}", file=sys.stderr, flush=True)
    try:
        result = train(config, corpus, run, resume=True)
    except UserError as error:
        raise SystemExit(str(error)) from None
    last = (run / "checkpoints" / "last").read_text()
    state = json.loads((run / "checkpoints" / last / "trainer.json").read_bytes())
    bound = result.validation
    return {
        "system": run.name.rpartition(".")[0],
        "seed": config.train.seed,
        "steps": result.step,
        "minutes": state["minutes"],
        "reason": result.reason,
        "elbo": bound.elbo,
        "rate": bound.rate,
        "active_units": bound.active_units,
        "bits_per_token": bound.bits_per_token,
        "config": dataclasses.asdict(config),
    }


@dataclass(frozen=True)
class Model:
    """A trained run that replies; read when it is first asked."""

    run: Path
    seed: int
    device: str

    @cached_property
    def pipeline(self) -> Pipeline:
        return Pipeline.load(self.run, str(pick_device(self.device)))

    def replies(self, contexts: Sequence[Context], setting: Setting) -> list[list[str]]:
        """Ten to each, as lower-cased words with spaces between them."""
        model = self.pipeline
        turns = [[text(turn) for turn in context.turns] for context in contexts]
        found: list[list[str]] = []
        for start in range(0, len(turns), _CONTEXTS):
            some = turns[start : start + _CONTEXTS]
            prior, context_BC = model.condition(model.windows([""] * len(some), some))
            keys = [[self.seed, start + i] for i in range(len(some))]
            many = REPLIES * setting.candidates
            drawn = draw_texts(model, prior, context_BC, many, keys, setting.decoding, setting.latents)
            for texts in drawn:
                spoken = [tuple(words(model.tokenizer.decode(decoded.ids))) for decoded, _ in texts]
                found.append([text(reply) for reply in longest(spoken, REPLIES)])
        return found


if __name__ == "__main__":
    main()
