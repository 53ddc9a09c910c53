"""Interpolations between turns: is every point a sentence, do the points lead from one end to the other, do the ends come back?

    python benchmarks/interpolation.py --model chitchat-vrae runs/chitchat-vrae-bound --data corpora/chitchat \
        --judge runs/remedies/reader

Draws pairs of different turns of so many tokens from the split, by seed, the same for each model, and walks between them along
the great circle (slerp) and the straight line (lerp). Prints Markdown tables of what `vrae.evaluation.paths` measures, then the
first paths in the order of the draw. With a judge, the perplexity of the inner points stands beside that of latents drawn from
the prior: decoded by the beam search that decodes the points; those of these texts that are as long as the given turns; and by
ancestral sampling.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

import vrae
from vrae import Corpus, Pipeline
from vrae.config import SEARCH, BatchConfig
from vrae.corpus.batches import Windows
from vrae.evaluation.bleu import words
from vrae.evaluation.diversity import distinct
from vrae.evaluation.paths import PathQuality, draw_pairs, interpolation, perplexity_ratio, sentences
from vrae.evaluation.quality import ANCESTRAL, Perplexity, draw_samples, perplexity, real_turns
from vrae.evaluation.replies import Estimate

Method = Literal["slerp", "lerp"]
Found = dict[tuple[str, Method], PathQuality]  # by the model's name and the method
METHODS: tuple[Method, ...] = ("slerp", "lerp")
PRIOR = ("searched", "short searched", "ancestral")  # of what the prior gives; short: those as long as the given turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--judge", help="a run of a language model, which reads the texts")
    parser.add_argument("--split", default="test")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--max_tokens", type=int, default=8)
    parser.add_argument("--min_tokens", type=int, default=2)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--samples", type=int, default=1000, help="from the prior, with a judge")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=20, help="print the first so many paths of each model, along slerp")
    options = parser.parse_args()

    corpus, judge = Corpus(options.data), vrae.load(options.judge) if options.judge else None
    among = sentences(corpus[options.split], corpus.tokenizer, min_tokens=options.min_tokens, max_tokens=options.max_tokens)
    pairs = draw_pairs(among, options.pairs, seed=options.seed)
    models = {Path(folder).name: vrae.load(folder) for folder in options.model}
    found: Found = {
        (name, method): interpolation(models[name], pairs, options.steps, method=method, judge=judge, seed=options.seed)
        for name, method in product(models, METHODS)
    }
    print(
        f"{len(pairs)} pairs of {len(among)} different turns. In brackets: standard errors over paths, of samples over texts."
    )
    print_steps(found)
    print_order(found)
    if judge:
        print_points(found, options.steps)
        limit = judge.info["run"]["batches"]["max_turn_tokens"]  # what it was taught
        windows = Windows(corpus[options.split], BatchConfig(max_turn_tokens=limit), 0)  # without context, as paths are
        real = {
            "the given turns": [text for pair in pairs for text in pair],
            f"real turns of at most {limit} tokens": real_turns(windows, corpus.tokenizer, options.samples),
        }
        drawn: dict[tuple[str, str], list[str]] = {}
        for name, model in models.items():
            searched, ancestral = (
                draw_samples(model, windows, options.samples, seed=options.seed, decoding=how).texts
                for how in (SEARCH, ANCESTRAL)
            )
            lengths = map(len, judge.tokenizer.encode(searched))
            short = [text for text, n in zip(searched, lengths, strict=True) if options.min_tokens <= n <= options.max_tokens]
            drawn |= {(name, how): texts for how, texts in zip(PRIOR, (searched, short, ancestral), strict=True) if texts}
        print_texts(found, drawn, real, judge)
    for number, pair in enumerate(pairs[: options.show]):
        print(f"\n{number + 1}. {pair[0]} ... {pair[1]}")
        for name in models:
            path = found[name, "slerp"].paths[number]
            print(f"\n    {name}", *(f"    {i / (len(path) - 1):.2f}  {text}" for i, text in enumerate(path)), sep="\n")


def print_steps(found: Found) -> None:
    print_head("path", "exact ends %", "different texts", "change %", "largest %", "inner exact %", "inner cosine")
    for place, quality in found.items():
        print_row(
            ", ".join(place),
            shown(Estimate(quality.exact_ends, quality.exact_ends_error), 100, 1),
            shown(Estimate(quality.distinct, quality.distinct_error), 1, 2),
            f"{100 * quality.step_change:.0f}",
            f"{100 * quality.largest_step_change:.0f}",
            shown(Estimate(quality.inner_exact, quality.inner_exact_error), 100, 1),
            shown(Estimate(quality.inner_cosine, quality.inner_cosine_error), 1, 3),
        )


def print_order(found: Found) -> None:
    """Whether the points lead from one end to the other."""
    print_head("path", "away %", "closer %", "away, moving %", "closer, moving %", "monotone paths %", "rank correlation")
    for place, quality in found.items():
        for name, order in ((", ".join(place), quality.monotony), ("its inner texts shuffled", quality.shuffled)):
            shares = (order.away, order.closer, order.away_moving, order.closer_moving, order.whole)
            print_row(name, *(shown(share, 100, 1) for share in shares), shown(order.rank_correlation, 1, 3))


def print_points(found: Found, steps: int) -> None:
    """The perplexity of the points, by their place."""
    print_head("path", *(f"t = {i / (steps - 1):.2f}" for i in range(steps)))
    for place, quality in found.items():
        print_row(", ".join(place), *(shown(Estimate(point.value, point.error), 1, 0) for point in quality.forward_by_point))


def print_texts(found: Found, drawn: dict[tuple[str, str], list[str]], real: dict[str, list[str]], judge: Pipeline) -> None:
    """What the judge says of the points, of the prior's texts and of real turns, and how varied each are among themselves.

    Variety is that of as many texts as there are paths: of the points the middle ones, since neighbours resemble each other.
    """
    many = len(next(iter(found.values())).paths)
    print_head("texts", "perplexity", *(f"over {how}" for how in PRIOR), "tokens", f"different of {many} %", "distinct-2")
    prior = {place: perplexity(judge, texts) for place, texts in drawn.items()}
    for (name, method), quality in found.items():
        assert quality.forward
        below = [prior.get((name, how)) for how in PRIOR]
        ratios = [shown(perplexity_ratio(quality.forward, one) if one else None, 1, 2) for one in below]
        middle = [path[len(path) // 2] for path in quality.paths]
        print_texts_row(f"{name}, {method}", quality.forward, ratios, middle)
    for place, texts in drawn.items():
        print_texts_row(f"{place[0]}, prior, {place[1]}", prior[place], [], texts[:many])
    for name, texts in real.items():
        chosen = np.linspace(0, len(texts) - 1, min(many, len(texts))).astype(np.int64)
        print_texts_row(name, perplexity(judge, texts), [], [texts[i] for i in chosen])


def print_texts_row(name: str, read: Perplexity, ratios: Sequence[str], some: Sequence[str]) -> None:
    print_row(
        name,
        shown(Estimate(read.value, read.error), 1, 0),
        *(ratios or [""] * len(PRIOR)),
        f"{read.tokens / read.texts:.1f}",
        f"{100 * len(set(some)) / len(some):.0f}",
        f"{distinct([[words(text) for text in some]], 2).corpus:.2f}",
    )


def print_head(*names: str) -> None:
    print()
    print_row(*names)
    print_row("---", *("---:" for _ in names[1:]))


def print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def shown(found: Estimate | None, factor: float, decimals: int) -> str:
    if found is None:
        return "-"
    error = "" if found.error is None else f" ({factor * found.error:.{decimals}f})"
    return f"{factor * found.value:.{decimals}f}{error}"


if __name__ == "__main__":
    main()
