"""Do end points of an interpolation come back word for word, and do the steps between change gradually?

    python benchmarks/interpolation.py --model runs/chitchat-vrae-faithful --data corpora/chitchat

Draws pairs of different sentences of at most so many tokens from the test split, by seed. Reports the share of end points
that decode to exactly the given ids, the mean number of distinct sentences on a path, and how far neighbouring sentences on
a path are apart: the share of tokens in the longer one that are not matched in the other (1 - longest common subsequence /
longer length), its mean over steps and the mean of each path's largest.
"""

from __future__ import annotations

import argparse
import json

import vrae
from vrae import Corpus
from vrae.evaluation.paths import draw_pairs, interpolation, sentences


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
    among = sentences(corpus[options.split], corpus.tokenizer, min_tokens=options.min_tokens, max_tokens=options.max_tokens)
    found = interpolation(model, draw_pairs(among, options.pairs, seed=options.seed), options.steps)
    for path in found.paths[: options.show]:
        print("\n".join(path), end="\n\n")
    print(
        json.dumps(
            {
                "pairs": options.pairs,
                "sentences": len(among),
                "exact_end_points": found.exact_ends,
                "distinct_per_path": found.distinct,
                "steps": options.steps,
                "mean_step_change": found.step_change,
                "mean_largest_step_change": found.largest_step_change,
            }
        )
    )


if __name__ == "__main__":
    main()
