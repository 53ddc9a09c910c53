"""Do end points of an interpolation come back word for word, and do the steps between change gradually?

    python benchmarks/interpolation.py --model runs/chitchat-vrae-faithful --data corpora/chitchat

Draws pairs of different sentences of at most so many tokens from the test split, by seed. Reports the share of end points
that decode to exactly the given ids, the mean number of distinct sentences on a path, and how far neighbouring sentences on
a path are apart: the share of tokens in the longer one that are not matched in the other (1 - longest common subsequence /
longer length), its mean over steps and the mean of each path's largest.
"""

from __future__ import annotations

import argparse
import itertools
import json

import numpy as np

import vrae
from vrae import Corpus


def common_subsequence(a: list[int], b: list[int]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b):
            before, row[j + 1] = row[j + 1], before + 1 if x == y else max(row[j + 1], row[j])
    return row[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--max_tokens", type=int, default=8)
    parser.add_argument("--min_tokens", type=int, default=2)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=2, help="print the first so many paths")
    options = parser.parse_args()

    model, corpus = vrae.load(options.model), Corpus(options.data)
    split, encode = corpus[options.split], corpus.tokenizer.encode
    lengths = np.diff(split.turns)
    short = np.flatnonzero((lengths >= options.min_tokens) & (lengths <= options.max_tokens))
    sentences = sorted({corpus.tokenizer.decode(split.turn(turn)) for turn in short.tolist()})
    rng = np.random.default_rng(options.seed)
    exact = ends = 0
    distinct, jumps, largest = [], [], []
    for pair in range(options.pairs):
        a, b = (sentences[i] for i in rng.choice(len(sentences), 2, replace=False))
        for result in model.reconstruct([a, b]):
            exact, ends = exact + result.exact, ends + 1
        texts = [step.text for step in model.interpolate(a, b, options.steps)]
        distinct.append(len(set(texts)))
        if pair < options.show:
            print("\n".join(texts), end="\n\n")
        ids = encode(texts)
        steps = [1 - common_subsequence(x, y) / max(len(x), len(y), 1) for x, y in itertools.pairwise(ids)]
        jumps.append(float(np.mean(steps)))
        largest.append(max(steps))
    print(
        json.dumps(
            {
                "pairs": options.pairs,
                "sentences": len(sentences),
                "exact_end_points": exact / ends,
                "distinct_per_path": float(np.mean(distinct)),
                "steps": options.steps,
                "mean_step_change": float(np.mean(jumps)),
                "mean_largest_step_change": float(np.mean(largest)),
            }
        )
    )


if __name__ == "__main__":
    main()
