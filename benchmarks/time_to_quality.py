"""How long training takes to a validation bound: the default recipe, the same without one of its parts, and plain Adam.

    vrae prepare chitchat --out corpora/chitchat
    python benchmarks/time_to_quality.py run --data corpora/chitchat --records records plain recipe
    python benchmarks/time_to_quality.py cost --data corpora/chitchat --records records plain recipe
    python benchmarks/time_to_quality.py summary --records records --target 84

`run` trains the model of `vrae train` by each recipe named and writes a line of JSON at each validation: processor seconds of
the training steps alone, on one thread; step; tokens; -elbo and rate in nats per turn, unweighted, over the same 2,000
validation turns. A recipe whose run is complete is not run again. `cost` times the steps of several recipes in turn, so that
what else the machine does disturbs all alike. `summary` says when each run first reached the target, in its own seconds, and
in steps times the cost of a step; `--figure` draws the curves.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from vrae.config import BatchConfig, ObjectiveConfig, RunConfig, TrainConfig
from vrae.corpus.batches import TrainingBatches, Windows
from vrae.corpus.prepared import Corpus
from vrae.evaluation.likelihood import measure
from vrae.files import to_json, write_file
from vrae.model.vrae import VRAE
from vrae.training.gradients import Gradients
from vrae.training.hardware import keep_memory, pick_device, pick_precision
from vrae.training.optimizer import make_optimizer
from vrae.training.run_folder import fit_to_corpus
from vrae.training.schedules import kl_weight, learning_rate


class Recipe(NamedTuple):
    """What differs from `RunConfig()`."""

    what: str
    steps: int
    batches: dict[str, Any] = {}
    objective: dict[str, Any] = {}
    train: dict[str, Any] = {}
    adam: bool = False  # torch.optim.Adam as it comes, instead of train.optimizer
    torch_weights: bool = False  # the latent's weights as torch draws them


_STEPS = 1400
_CONSTANT = dict(final_learning_rate=1.0, warmup_steps=0)
_PLAIN = Recipe(
    "Adam, constant 0.003, 512 tokens, torch's weights",
    22_000,
    dict(tokens=512),
    dict(kl_warmup_steps=2000),
    dict(_CONSTANT, clip_norm=0.0, learning_rate=0.003),
    adam=True,
    torch_weights=True,
)
RECIPES = {
    "plain": _PLAIN,
    **{
        f"plain-{rate}": _PLAIN._replace(train={**_PLAIN.train, "learning_rate": rate})
        for rate in (0.0005, 0.001, 0.002, 0.006)
    },
    "recipe": Recipe("the default", _STEPS),
    "torch-weights": Recipe("the recipe with the latent's weights as torch draws them", _STEPS, torch_weights=True),
    "adamw": Recipe("the recipe with AdamW for all", _STEPS, train=dict(optimizer="adamw", learning_rate=0.005)),
    "constant": Recipe("the recipe at a constant rate", _STEPS, train=_CONSTANT),
    "quarter-rate": Recipe("the recipe at a learning rate of 0.005", _STEPS, train=dict(learning_rate=0.005)),
    "double-rate": Recipe("the recipe at a learning rate of 0.04", _STEPS, train=dict(learning_rate=0.04)),
    "half-batch": Recipe("the recipe with batches of 1,024 tokens", 2 * _STEPS, dict(tokens=1024), dict(kl_warmup_steps=2000)),
}


class Training:
    """The steps of a run.

    Args:
        recipe: what differs from the default.
        corpus: its training split, and its validation split for `validate`.
        seed: of weights, order and noise.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus, seed: int) -> None:
        train = TrainConfig(**{"max_steps": recipe.steps, "seed": seed, **recipe.train})
        self.config = fit_to_corpus(
            RunConfig(batches=BatchConfig(**recipe.batches), objective=ObjectiveConfig(**recipe.objective), train=train), corpus
        )
        device = pick_device(train.device)
        self.precision = pick_precision(train.precision, device)
        torch.manual_seed(seed)
        self.model = VRAE(self.config.model).to(device).train()
        if recipe.torch_weights:
            for layer in (self.model.decoder.start_state, self.model.decoder.condition):
                nn.Linear.reset_parameters(layer)
        self.optimizer = make_optimizer(self.model, None, train, self.precision)
        if recipe.adam:
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=train.learning_rate, fused=True)
        self.validation = Windows(corpus["validation"], self.config.batches, 0)
        self.batches = TrainingBatches(corpus["train"], self.config.batches, 0, seed, self.config.model.latent_size)
        self.gradients = Gradients(self.model, None, self.batches, self.config, device, self.precision)

    def step(self, number: int) -> float:
        """Its processor seconds."""
        began, train = time.process_time(), self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, train.max_steps, train)
        self.gradients.of(number, kl_weight(number, self.config.objective), pretraining=False)
        if train.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_norm)
        self.optimizer.step()
        return time.process_time() - began

    def validate(self) -> dict[str, float]:
        bound = measure(self.model, self.validation, limit=2000)
        return {"-elbo": -bound.elbo, "rate": bound.rate}


def run(recipe: str, corpus: Corpus, seed: int, path: Path, every: float) -> None:
    """Trains to the end; a validation each `every` seconds. Appears as `path` when complete, before as `path`.part."""
    training = Training(RECIPES[recipe], corpus, seed)
    head = {"recipe": recipe, "seed": seed, "config": dataclasses.asdict(training.config)}
    head |= {"precision": training.precision, "corpus": corpus.fingerprint, "torch": torch.__version__}
    seconds, tokens, due, last = 0.0, 0, every, training.config.train.max_steps
    part = path.with_suffix(".part")
    with part.open("w") as file:
        print(json.dumps(head), file=file)
        for number in range(last):
            seconds += training.step(number)
            tokens += training.batches.size(number)[1]
            if seconds >= due or number + 1 == last:
                record = {"seconds": seconds, "step": number + 1, "tokens": tokens, **training.validate()}
                print(json.dumps(record), file=file, flush=True)
                print(recipe, seed, *(f"{key} {value:.5g}" for key, value in record.items()), flush=True)
                due += every
    part.rename(path)


def cost(recipes: list[str], corpus: Corpus, rounds: int) -> dict[str, float]:
    """Processor seconds of a step: sums over the same number of rounds, each of the same number of tokens of every recipe."""
    trainings = {name: Training(RECIPES[name], corpus, 1) for name in recipes}
    most = max(training.config.batches.tokens for training in trainings.values())
    taken: dict[str, list[float]] = {name: [] for name in recipes}
    for turn in range(rounds + 1):
        for name, training in trainings.items():
            steps = most // training.config.batches.tokens
            seconds = [training.step(turn * steps + i) for i in range(steps)]
            if turn:  # the first one also gets memory
                taken[name] += seconds
    return {name: statistics.median(values) for name, values in taken.items()}


def summary(folder: Path, target: float) -> str:
    """A Markdown table of the stored runs: when each first reached the target, and where it ended."""
    costs = json.loads((folder / "cost.json").read_text()) if (folder / "cost.json").is_file() else {}
    lines = [
        "| recipe | seed | seconds to target | steps | steps x cost | tokens | rate there | at the end: seconds, -elbo, rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(folder.glob("*.jsonl")):
        head, *records = [json.loads(line) for line in path.read_text().splitlines()]
        there = next((record for record in records if record["-elbo"] <= target), None)
        name, end = head["recipe"], records[-1]
        by_cost = f"{there['step'] * costs[name]:.0f}" if there and name in costs else "-"
        reached = (
            f"{there['seconds']:.0f} | {there['step']:,} | {by_cost} | {there['tokens']:,} | {there['rate']:.2f}"
            if there
            else "not reached | - | - | - | -"
        )
        lines.append(f"| {name} | {head['seed']} | {reached} | {end['seconds']:.0f}, {end['-elbo']:.2f}, {end['rate']:.2f} |")
    return "\n".join(lines)


def figure(folder: Path, target: float, path: Path) -> None:
    """-elbo over seconds of every stored run."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7, 4.2), layout="constrained")
    axes = drawing.subplots()
    for source in sorted(folder.glob("*.jsonl")):
        head, *records = [json.loads(line) for line in source.read_text().splitlines()]
        axes.plot(
            *zip(*((r["seconds"], r["-elbo"]) for r in records), strict=True), label=f"{head['recipe']}, seed {head['seed']}"
        )
    axes.axhline(target, color="grey", linewidth=0.8)
    axes.set(
        xlabel="processor seconds of training steps", ylabel="validation -elbo, nats per turn", ylim=(target - 3, target + 15)
    )
    axes.legend(fontsize="small")
    drawing.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["run", "cost", "summary"])
    parser.add_argument("recipes", nargs="*", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--data", help="a prepared corpus")
    parser.add_argument("--records", type=Path, required=True, help="a folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--every", type=float, default=60, help="seconds of training between two validations")
    parser.add_argument("--rounds", type=int, default=10, help="of cost")
    parser.add_argument("--target", type=float, help="validation -elbo, nats per turn")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_intermixed_args()  # `run --data .. plain` too
    if unknown := set(options.recipes) - RECIPES.keys():
        parser.error(f"no recipe {', '.join(sorted(unknown))}; there are {', '.join(RECIPES)}")
    if options.job != "summary" and not (options.data and options.recipes):
        parser.error(f"{options.job} needs --data and a recipe")
    torch.set_num_threads(1)  # or processor seconds would be those of all threads
    keep_memory()
    options.records.mkdir(parents=True, exist_ok=True)
    if options.job == "summary":
        print(summary(options.records, options.target))
        if options.figure:
            figure(options.records, options.target, options.figure)
    elif options.job == "cost":
        found = cost(options.recipes, Corpus(options.data), options.rounds)
        print(found)
        write_file(options.records / "cost.json", to_json(found))
    else:
        for recipe in options.recipes:
            for seed in options.seeds:
                path = options.records / f"{recipe}-{seed}.jsonl"
                if not path.is_file():
                    run(recipe, Corpus(options.data), seed, path, options.every)


if __name__ == "__main__":
    main()
