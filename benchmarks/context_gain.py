"""What the context saves: the cost of test turns with the turns before them, and the same turns without.

python benchmarks/context_gain.py --model runs/chitchat-vhred --data corpora/chitchat
"""

from __future__ import annotations

import argparse

import numpy as np

import vrae
from vrae.config import BatchConfig
from vrae.corpus.batches import Windows
from vrae.evaluation.turns import join_turns, measure_batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run with a context")
    parser.add_argument("--data", required=True)
    parser.add_argument("--turns", type=int, default=500, help="an even sample of so many test turns")
    parser.add_argument("--max_turn_tokens", type=int, default=32)
    parser.add_argument("--k", type=int, default=10, help="draws of z for each turn")
    options = parser.parse_args()

    model = vrae.load(options.model).model
    batches = BatchConfig(tokens=4096, max_turn_tokens=options.max_turn_tokens)
    windows = Windows(vrae.Corpus(options.data)["test"], batches, model.config.context_turns)
    given, alone = [], []
    for windows_B, batch in windows.in_order(options.turns):
        given.append(measure_batch(model, windows_B, batch, k=options.k, seed=0))
        alone.append(measure_batch(model, windows_B, batch.without_context(), k=options.k, seed=0))
    given_N, alone_N = (join_turns(parts, model.config.latent_size).nll_iw_N for parts in (given, alone))
    saved_N = alone_N - given_N
    error = saved_N.std(ddof=1) / np.sqrt(len(saved_N))
    print(f"{len(saved_N)} turns, nats per turn, importance-weighted with k = {options.k}")
    print(
        f"in their context {given_N.mean():.2f}, without {alone_N.mean():.2f}: {saved_N.mean():.2f} saved (error {error:.2f})"
    )
    print(f"share of turns that are cheaper in their context: {(saved_N > 0).mean():.1%}")


if __name__ == "__main__":
    main()
