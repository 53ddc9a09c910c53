"""Style transfer along a latent direction: accuracy against content kept, beside interpolation towards the other label.

    python benchmarks/style_transfer.py --model chitchat-vrae --data corpora/chitchat --out transfer.md

Two attributes that turns have by their form: question or statement, short or long. Directions are learnt from turns of the
training split, text classifiers from other turns of it; what is measured are turns of the test split that do not occur in
training. Writes Markdown: every curve, what they keep at the same accuracy, and examples picked by seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import vrae
from vrae import Corpus, Pipeline
from vrae.evaluation.paths import sentences
from vrae.evaluation.transfer import RULES, Rule, TextClassifier, Transfer, nearest, overlap_at, towards, transfer
from vrae.generation.attributes import learn, move

STRENGTHS = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
SHARES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
ACCURACIES = (0.5, 0.7, 0.9)
METHODS = ("means", "normal", "nearest", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", help="write the Markdown here, not to the screen")
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=250, help="turns of each label that are moved")
    parser.add_argument("--learn", type=int, default=2000, help="turns of each label that a direction is learnt from")
    parser.add_argument("--classify", type=int, default=10_000, help="most turns of each label that a classifier learns from")
    parser.add_argument("--max_tokens", type=int, default=24)
    parser.add_argument("--judge", help="a language model, for the perplexity of what is written")
    parser.add_argument("--examples", type=int, default=20, help="of each attribute")
    parser.add_argument("--show_strength", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    model, corpus = vrae.load(options.model), Corpus(options.data)
    judge = vrae.load(options.judge) if options.judge else None
    given, held = (
        sentences(corpus[split], corpus.tokenizer, min_tokens=2, max_tokens=options.max_tokens)
        for split in ("train", options.split)
    )
    known = {text.casefold() for text in given}
    held = [text for text in held if text.casefold() not in known]
    lines = [line for rule in RULES for line in section(rule, model, given, held, judge, options)]
    text = "\n".join(lines) + "\n"
    if options.out:
        Path(options.out).write_text(text, encoding="utf-8")
    else:
        print(text)


def section(
    rule: Rule, model: Pipeline, given: list[str], held: list[str], judge: Pipeline | None, options: argparse.Namespace
) -> list[str]:
    """The Markdown of one attribute."""
    rng = np.random.default_rng([options.seed, RULES.index(rule)])
    pools = [shuffled([text for text in given if rule.label(text) == label], rng) for label in (0, 1)]
    learnt, rest = [pool[: options.learn] for pool in pools], [pool[options.learn :] for pool in pools]
    most = min(options.classify, *map(len, rest))
    bare, marked = (TextClassifier(bare=bare).fit(rest[0][:most], rest[1][:most]) for bare in (True, False))
    sides = [shuffled([text for text in held if rule.label(text) == label], rng)[: options.count] for label in (0, 1)]
    sources, aims = [*sides[0], *sides[1]], [1] * len(sides[0]) + [0] * len(sides[1])
    attribute = learn(model, *learnt, name=rule.name, labels=rule.labels)

    z_BZ, goal_pools = model.encode(sources)[0], [model.encode(texts)[0] for texts in learnt]
    goals = {
        "nearest": np.stack(
            [goal_pools[aim][nearest(z_Z[None], goal_pools[aim])[0]] for z_Z, aim in zip(z_BZ, aims, strict=True)]
        ),
        "random": np.stack([goal_pools[aim][rng.integers(len(goal_pools[aim]))] for aim in aims]),
    }

    def at(method: str, amount: float) -> list[str]:
        if method in goals:
            return towards(model, z_BZ, goals[method], amount)
        toward_second = move(model, sides[0], attribute, amount, along=method)
        toward_first = move(model, sides[1], attribute, -amount, along=method)
        return [result.moved for result in (*toward_second, *toward_first)]

    texts = {(m, a): at(m, a) for m in METHODS for a in (SHARES if m in goals else STRENGTHS)}

    def measured(method: str, aim: int | None) -> list[tuple[float, Transfer]]:
        """Each point of a curve, for those that aim at a label or for all."""
        rows = [i for i, value in enumerate(aims) if aim in (None, value)]
        some = [[values[i] for i in rows] for values in (sources, aims)]
        reader = judge if aim is None else None
        return [
            (amount, transfer(some[0], [moved[i] for i in rows], some[1], rule, bare, marked, reader))
            for (name, amount), moved in texts.items()
            if name == method
        ]

    curves = {aim: {method: measured(method, aim) for method in METHODS} for aim in (None, 1, 0)}
    unchanged = transfer(sources, sources, [1 - aim for aim in aims], rule, bare, marked, judge)
    first, second = rule.labels
    lines = [
        f"### {first} <-> {second}",
        "",
        f"Direction from {len(learnt[0]):,} + {len(learnt[1]):,} turns: the means are {attribute.distance:.2f} standard"
        f" deviations apart, {attribute.accuracy:.1%} of left-out turns are read right. Text classifiers from {most:,} +"
        f" {most:,} other turns, right on {unchanged.accuracy:.1%} (without end marks) and {unchanged.accuracy_marked:.1%}"
        f" (whole) of the {len(sources)} test turns as they stand."
        + (f" Judge perplexity of these: {unchanged.forward.value:.1f}." if unchanged.forward else ""),
        "",
        *table(
            "method | at | accuracy, bare | accuracy, whole | by rule | kept | overlap | BLEU | same"
            + (" | perplexity" if judge else ""),
            [row(method, amount, found) for method in METHODS for amount, found in curves[None][method]],
        ),
        "",
        "Overlap at the same accuracy (the best point of a curve at that accuracy or above; -: never reached):",
        "",
        *table(
            "towards | classifier | accuracy | " + " | ".join(METHODS),
            [
                [name, seen, f"{level:.0%}", *(percent(overlap_at(points(curves[aim][m]), level)) for m in METHODS)]
                for name, aim in (("both", None), (second, 1), (first, 0))
                for seen, points in (("bare", bare_points), ("whole", whole_points))
                for level in ACCURACIES
            ],
        ),
        "",
        f"The first {options.examples // 2} of each side, in the order drawn; left to right: the turn, its reconstruction,"
        f" moved by {options.show_strength:g} along `means` and along `normal`.",
        "",
    ]
    for side, sign in ((0, 1), (1, -1)):
        some = sides[side][: options.examples // 2]
        strength = sign * options.show_strength
        shown = [
            [result.moved for result in results]
            for results in (
                move(model, some, attribute, 0.0),
                move(model, some, attribute, strength, along="means"),
                move(model, some, attribute, strength, along="normal"),
            )
        ]
        head = f"{rule.labels[side]} | strength 0 | towards {rule.labels[1 - side]}: means | normal"
        lines += [*table(head, [list(cells) for cells in zip(some, *shown, strict=True)]), ""]
    return lines


def shuffled(texts: list[str], rng: np.random.Generator) -> list[str]:
    return [texts[i] for i in rng.permutation(len(texts))]


def bare_points(curve: list[tuple[float, Transfer]]) -> list[tuple[float, float]]:
    return [(found.accuracy, found.overlap) for _, found in curve]


def whole_points(curve: list[tuple[float, Transfer]]) -> list[tuple[float, float]]:
    return [(found.accuracy_marked, found.overlap) for _, found in curve]


def row(method: str, amount: float, found: Transfer) -> list[str]:
    figures = (found.accuracy, found.accuracy_marked, found.by_rule, found.kept, found.overlap, found.bleu, found.same)
    return [method, f"{amount:g}", *map(percent, figures), *([f"{found.forward.value:.1f}"] if found.forward else [])]


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def table(head: str, rows: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {head} |", "|---" * (head.count("|") + 1) + "|", *("| " + " | ".join(row) + " |" for row in cells)]


if __name__ == "__main__":
    main()
