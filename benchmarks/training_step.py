"""The training step against the products of matrices that it cannot do without, and five context turns against one.

    vrae prepare chitchat --out corpora/chitchat
    python benchmarks/training_step.py --data corpora/chitchat

For each hidden size, without a context: `train_of_matmul`, the useful operations a second of whole steps (batch, gradient,
clipping, update) over those of the same products alone, at the same shapes and in the same precision; `padding`, the share of a
step's operations that is padding or repetition. Then `k5_of_k1`, target tokens a second with five context turns over those
with one. What is compared runs in turn; medians.
"""

from __future__ import annotations

import argparse
import json

import torch

from vrae.apps.bench import Step, tokens_ratio, train_of_matmul
from vrae.config import BatchConfig, ModelConfig, RunConfig, TrainConfig
from vrae.corpus.prepared import Corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a prepared corpus")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--tokens", type=int, default=8192, help="of a batch")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--minutes", type=float, default=0.5, help="of each figure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    corpus = Corpus(options.data)

    def step(hidden: int, context_turns: int) -> Step:
        model = ModelConfig(hidden_size=hidden, context_size=hidden, context_turns=context_turns)
        train = TrainConfig(precision=options.precision)
        return Step(RunConfig(model=model, batches=BatchConfig(tokens=options.tokens), train=train), corpus)

    found: dict[str, dict[str, float | str]] = {}
    for hidden in options.hidden:
        plain = step(hidden, 0)
        rates = train_of_matmul(plain, options.minutes)
        found[str(hidden)] = {
            **rates._asdict(),
            "k5_of_k1": tokens_ratio(step(hidden, 5), step(hidden, 1), options.minutes),
            "device": str(plain.device),
            "precision": plain.precision,
            "threads": torch.get_num_threads(),
        }
        if not options.json:
            print(
                f"hidden {hidden}: "
                + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found[str(hidden)].items())
            )
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
