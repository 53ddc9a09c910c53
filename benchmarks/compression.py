"""What do test turns take, coded and decoded with bits back, beside the bound, a model without a latent, gzip and xz?

python benchmarks/compression.py --model runs/chitchat-vrae --baseline runs/chitchat-rnnlm --data corpora/chitchat
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import math
import time

import numpy as np

import vrae
from vrae import Corpus
from vrae.config import BatchConfig
from vrae.corpus.batches import Windows
from vrae.evaluation.compression import compress, decompress, expected_bits
from vrae.evaluation.likelihood import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run with context_turns 0")
    parser.add_argument("--baseline", help="a run with context_turns 0 and latent_size 0")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--turns", type=int, default=500, help="at even spacing over the split")
    parser.add_argument("--max_turn_tokens", type=int, default=24, help="longer turns are passed over")
    parser.add_argument("--k", type=int, default=0, help="importance samples of the tighter bound; 0: none")
    options = parser.parse_args()

    corpus = Corpus(options.data)
    split = corpus[options.split]
    windows = Windows(split, BatchConfig(max_turn_tokens=options.max_turn_tokens), context_turns=0)
    chosen = windows.target_N[np.linspace(0, len(windows) - 1, options.turns).astype(np.int64)]
    text = "".join(f"{corpus.tokenizer.decode(split.turn(turn))}\n" for turn in chosen).encode()
    print(f"{options.turns} turns of {options.split}, {len(text):,} bytes with line ends")

    for path in filter(None, (options.model, options.baseline)):
        pipeline = vrae.load(path)
        if pipeline.model.config.context_turns:
            parser.error(f"{path}: reads a context, and these turns have none")
        start = time.perf_counter()
        container, account = compress(pipeline, text, quiet=False)
        there = time.perf_counter() - start
        exact = decompress(pipeline, container, quiet=False) == text
        back = time.perf_counter() - start - there
        bound = expected_bits(pipeline, text)
        print(f"\n{path}, latent_size {pipeline.model.config.latent_size}")
        print(f"  coded in {there:.1f} s, decoded in {back:.1f} s, {'bit-exact' if exact else 'NOT THE SAME'}")
        print(f"  turns, raw lines, blank lines  {account.turns}, {account.raw_lines}, {account.blank_lines}")
        print(f"  -elbo                          {bound.bits:12,.0f} bits; one coding deviates by {bound.deviation:,.0f}")
        print(f"  taken by the turns             {account.bits_turns:12,.0f} bits, {account.bits_turns / bound.bits - 1:+.2%}")
        print(f"    for z                        {account.bits_prior:12,.0f}")
        print(f"    given back                   {-account.bits_posterior:12,.0f}")
        print(f"    for the text given z         {account.bits_tokens:12,.0f}")
        print(f"  kinds of lines                 {account.bits_kinds:12,.0f}")
        print(f"  raw lines                      {account.bits_raw:12,.0f}")
        print(f"  digest                         {account.bits_initial:12,.0f}")
        print(f"  header                         {account.bits_header:12,.0f}")
        if options.k:
            tight = measure(pipeline.model, windows, limit=options.turns, k=options.k)  # the same turns
            assert tight.nll_iw is not None
            assert tight.turns == account.turns
            print(f"  importance-weighted, k = {options.k:<6}{tight.nll_iw * tight.turns / math.log(2):12,.0f} bits")
        print(f"  per turn, token, byte of text  {account.bits_turns / account.turns:12.2f}", end="")
        print(f", {account.bits_turns / account.tokens:.3f}, {account.bits_net / len(text):.3f} bits")
        print(f"  whole container                {len(container):12,} bytes")

    print(f"\ngzip -9                          {len(gzip.compress(text, 9, mtime=0)):12,} bytes")
    print(f"xz -9                            {len(lzma.compress(text, preset=9)):12,} bytes")


if __name__ == "__main__":
    main()
