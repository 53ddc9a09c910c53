"""What one GPU makes of training and writing: tokens a second, share of its matrix products, memory, and what bf16 costs.

    vrae prepare chitchat --out corpora/chitchat-8k --vocab_size 8000
    python benchmarks/gpu.py --data corpora/chitchat-8k --out gpu.json

1. For each size of a batch, at hidden size 512: real target tokens a second over whole steps, the host waiting for each as
   training does; useful operations a second over those of the same products alone, and over the data sheet's (`--peak`); peak
   memory.
2. A run of `--steps` steps in bf16 and one in fp32, same seed: validation -elbo of both.
3. Ten replies to each of 1,000 contexts, by fresh weights in the sizes of chitchat-vhred, 24 tokens each: seconds.

Works on a CPU too (`--device cpu --tokens 2048 --steps 20`), to see that it works. No run on a GPU is recorded yet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vrae.apps.bench import Step, Writer, train_of_matmul
from vrae.config import BatchConfig, ModelConfig, RunConfig, TrainConfig
from vrae.corpus.prepared import Corpus
from vrae.evaluation.quality import real_turns
from vrae.training.hardware import pick_device
from vrae.training.trainer import train

MODEL = ModelConfig(hidden_size=512, dropout=0.2)
TIMED_STEPS = 50
H100_BF16 = 989e12  # operations a second, dense (NVIDIA H100 SXM data sheet)


def training(corpus: Corpus, tokens: int, device: str, peak: float) -> dict[str, Any]:
    """Figure 1 for batches of so many tokens."""
    kind = pick_device(device)
    if kind.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = Step(RunConfig(model=MODEL, batches=BatchConfig(tokens=tokens), train=TrainConfig(device=device)), corpus)
    count = min(TIMED_STEPS, max(step.batches.batches_per_epoch - 4, 1))
    seconds, done = [], 0
    for number in range(3 + count):
        began = time.perf_counter()
        step.run(number)
        _wait(kind)  # as the trainer does
        if number >= 3:
            seconds.append(time.perf_counter() - began)
            done += step.batches.size(number)[1]
    rates = train_of_matmul(step, 0.2)
    return {
        "tokens": tokens,
        "tokens_per_second": done / sum(seconds),
        "step_ms": 1000 * statistics.median(seconds),
        "train_of_matmul": rates.train_of_matmul,
        "train_of_peak": rates.train / peak,
        "matmul_of_peak": rates.matmul / peak,
        "padding": rates.padding,
        "precision": step.precision,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if kind.type == "cuda" else None,
    }


def precisions(corpus: Corpus, tokens: int, device: str, steps: int) -> dict[str, float]:
    """Validation -elbo, nats per turn, of the same run in both precisions; and their ratio."""
    found = {}
    for precision in ("bf16", "fp32"):
        options = TrainConfig(max_steps=steps, device=device, precision=precision, validate_every=steps, checkpoint_every=steps)
        with tempfile.TemporaryDirectory() as folder:
            config = RunConfig(model=MODEL, batches=BatchConfig(tokens=tokens), train=options)
            found[precision] = -train(config, corpus, Path(folder) / "run", quiet=True).validation.elbo
    return {**found, "ratio": found["bf16"] / found["fp32"]}


def writing(corpus: Corpus, device: str, contexts: int) -> float:
    """Median seconds of ten replies to each context."""
    kind = pick_device(device)
    writer = Writer.fresh(corpus, kind)
    batches = BatchConfig(max_turn_tokens=24)
    step = Step(RunConfig(model=ModelConfig(hidden_size=32), batches=batches, train=TrainConfig(device=device)), corpus)
    turns = [[text] for text in real_turns(step.batches.windows, corpus.tokenizer, contexts)]
    seconds = []
    for seed in range(4):
        began = time.perf_counter()
        writer.write(turns, seed)
        _wait(kind)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a prepared corpus of 8,000 pieces")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32_768, 131_072], help="of a batch")
    parser.add_argument("--steps", type=int, default=1000, help="of each run of 2; 0: none")
    parser.add_argument("--contexts", type=int, default=1000)
    parser.add_argument("--peak", type=float, default=H100_BF16, help="operations a second of the data sheet")
    parser.add_argument("--out", type=Path, help="write the figures there")
    options = parser.parse_args()
    corpus = Corpus(options.data)
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "training": []}
    for tokens in options.tokens:
        found["training"].append(training(corpus, tokens, options.device, options.peak))
        print(json.dumps(found["training"][-1]), flush=True)
    if options.steps:
        found["precisions"] = precisions(corpus, min(options.tokens), options.device, options.steps)
        print(json.dumps(found["precisions"]), flush=True)
    found["writing_seconds"] = writing(corpus, options.device, options.contexts)
    print(f"{options.contexts:,} contexts, ten replies each: {found['writing_seconds']:.2f} s")
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
