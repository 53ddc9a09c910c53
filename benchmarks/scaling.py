"""How well would training use 1 to 1,024 GPUs? A closed form, and a simulation of the same steps, event by event.

    vrae prepare chitchat --out corpora/chitchat --vocab_size 6000
    python benchmarks/scaling.py --data corpora/chitchat

Measured here: how evenly a step's operations are shared (real lengths, real parts of real batches), what planning an epoch and
making a batch take of a turn, and on this machine's CPU the time of a step against its tokens and that of an all-reduce of two
processes over gloo against its bytes. Assumed, since no GPU is at hand: the constants of `Machine`, each with its source. The
first prediction is for those GPUs; the second, for processes of this CPU, has measured constants alone.

Prediction: the seconds of a step are

    compute   operations of a share / rate + launches, times the expected share of the slowest of R processes
    reduce    2 (R - 1) / R x bytes / bandwidth + 2 log2(R) x latency
    host      making a share of the batch, as far as it is longer than what the GPU takes for the step before
    plan      planning the turns of a step, which each process does for the whole corpus (R times a share), in a thread beside
              the steps of the block before: as far as it takes longer than they

and efficiency is the first of it on one GPU over all of it on R. The simulation draws the share of each process, in each step,
from the measured ones, and the time of a step from a log-normal distribution around it; a ring or tree of messages begins when
the last process has come. Each process plans a block while it learns from the one before.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import socket
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from vrae.apps.bench import Step
from vrae.config import BatchConfig, ModelConfig, RunConfig, TrainConfig
from vrae.corpus.batches import TrainingBatches, Windows
from vrae.corpus.prepared import Corpus, Split
from vrae.model.vrae import VRAE
from vrae.training.cost import layers

GPUS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
BLOCK_TURNS = 2**24  # as in vrae.corpus.batches


@dataclass(frozen=True)
class Machine:
    """What one process computes with, and how it is connected."""

    name: str
    rate: float  # operations a second in a step
    fixed: float  # seconds of a step that no share makes shorter: launches of kernels
    inside: float  # bytes a second between processes of a node, each way
    across: float  # likewise between nodes, for each process
    latency: float  # seconds of a message
    node: int  # processes of a node
    spread: float  # of the logarithm of a step's time


H100 = Machine(
    "H100 (assumed)",
    # A twentieth of the 989e12 dense bf16 of the data sheet (NVIDIA H100 SXM): what 2 million target tokens a second come to at
    # hidden size 512, this package's target for one GPU. Not measured.
    rate=50e12,
    fixed=1e-3,  # some 300 launches of 3 microseconds
    inside=450e9,  # NVLink 4: 900e9 both ways together (the same data sheet)
    across=50e9,  # InfiniBand NDR, 400 Gbit/s, one port for each GPU (NVIDIA DGX H100 data sheet)
    latency=5e-6,  # of a message of NCCL between nodes, of the order of what nccl-tests shows
    node=8,
    spread=0.02,
)


@dataclass(frozen=True)
class Work:
    """What a training step costs, for a model and a corpus, whatever the machine."""

    operations: float  # of one target token
    parameters: int
    tokens: int  # target tokens of a process's share of a step
    shares: list[float]  # a share's operations over the mean of its step, measured
    turn_tokens: float  # target tokens of a turn
    make: float  # seconds of the host's CPU for a target token of a share
    plan: float  # likewise for a turn that is planned

    @property
    def bytes(self) -> int:
        """Of the gradient, in fp32: what an all-reduce adds up."""
        return 4 * self.parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a prepared corpus")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--context_turns", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32_768, help="of a process and step")
    parser.add_argument("--steps", type=int, default=400, help="that are simulated, for each number of processes")
    parser.add_argument("--turns", type=float, default=1e10, help="of the corpus that is foretold")
    parser.add_argument("--json", help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    corpus = Corpus(options.data)
    model = ModelConfig(
        vocab_size=len(corpus.tokenizer),
        hidden_size=options.hidden,
        context_size=options.hidden,
        context_turns=options.context_turns,
    )
    figures: dict[str, Any] = {}
    work, imbalance = measured_work(corpus, model, options.tokens)
    figures["imbalance"] = imbalance
    print(f"a step's operations, largest share over mean, by processes: {imbalance}")
    print(f"all shares together over the batch undivided: {read_again(corpus, model, options.tokens)}")
    print(f"{json.dumps({**asdict(work), 'shares': len(work.shares), 'bytes': work.bytes})}\n")
    figures["corpus"] = of_corpus(corpus, work, int(options.turns))
    print("\n".join(f"{name:44}{value:16,.4g}" for name, value in figures["corpus"].items()), "\n")

    here, shared = this_machine(corpus, model, work)
    for machine, one in ((H100, work), (here, shared)):
        print(f"{machine.name}, {one.tokens:,} tokens a process and step")
        print(json.dumps({key: value for key, value in asdict(machine).items() if key != "name"}))
        print(f"{'processes':>10}{'step, ms':>12}{'tokens/s':>12}{'predicted':>11}{'simulated':>11}{'without plan':>14}")
        figures[machine.name] = []
        for count in GPUS:
            seconds = predict(one, machine, count)
            row = {
                "processes": count,
                **seconds,
                "predicted": efficiency(one, machine, seconds),
                "simulated": efficiency(one, machine, simulate(one, machine, count, options.steps)),
                "without_plan": efficiency(one, machine, {**seconds, "plan": 0.0}),
            }
            figures[machine.name].append(row)
            total = sum(seconds.values())
            print(
                f"{count:10}{1000 * total:12.3g}{count * one.tokens / total:12.3g}{row['predicted']:11.3f}"
                f"{row['simulated']:11.3f}{row['without_plan']:14.3f}"
            )
        print()
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)


# What is predicted


def predict(work: Work, machine: Machine, count: int) -> dict[str, float]:
    """The seconds of a step on `count` processes."""
    compute = alone(work, machine) * slowest(work.shares, machine.spread, count)
    reduce = reduce_seconds(work.bytes, machine, count)
    host = max(work.make * work.tokens - compute, 0.0)
    plan = work.plan * count * work.tokens / work.turn_tokens
    return {"compute": compute, "reduce": reduce, "host": host, "plan": max(plan - compute - reduce - host, 0.0)}


def efficiency(work: Work, machine: Machine, seconds: dict[str, float]) -> float:
    """Share of a step's time in which a GPU does what one alone would do."""
    return alone(work, machine) / sum(seconds.values())


def alone(work: Work, machine: Machine) -> float:
    """Seconds of the mean share's products and launches."""
    return work.operations * work.tokens / machine.rate + machine.fixed


def slowest(shares: list[float], spread: float, count: int) -> float:
    """The expected largest of `count` draws of a share times a log-normal number.

    For the largest of n normal numbers, the quantile of (n - 0.375) / (n + 0.25) (Blom 1958).
    """
    deviation = math.hypot(statistics.pstdev(shares), spread)
    place = statistics.NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0
    return 1 + deviation * place


def reduce_seconds(size: int, machine: Machine, count: int) -> float:
    """A ring inside the nodes and one across them, each moving 2 (n - 1) / n of the bytes; messages pass a tree."""
    inside, nodes = min(count, machine.node), -(-count // machine.node)
    moved = 2 * size * ((inside - 1) / inside / machine.inside + (nodes - 1) / nodes / (machine.across * inside))
    return moved + 2 * math.ceil(math.log2(count)) * machine.latency if count > 1 else 0.0


# What is simulated


def simulate(work: Work, machine: Machine, count: int, steps: int, seed: int = 0) -> dict[str, float]:
    """Mean seconds of a step: each process's own clock, which meets those of the others in the messages of an all-reduce."""
    rng = np.random.default_rng(seed)
    shares, base, make = np.array(work.shares), alone(work, machine), work.make * work.tokens
    per_step = count * work.tokens / work.turn_tokens  # turns
    block = max(min(int(BLOCK_TURNS / per_step), steps // 20), 1)  # steps
    clock_R, host_R, ready_R = np.zeros((3, count))
    opened = []
    for step in range(steps + 1):
        if step % block == 0:
            clock_R = np.maximum(clock_R, ready_R)
            ready_R = clock_R + work.plan * per_step * block * rng.lognormal(0, machine.spread, count)
            opened.append((step, float(clock_R.max())))
        host_R = np.maximum(host_R, clock_R - base) + make  # one batch ahead of the GPU
        clock_R = np.maximum(clock_R, host_R)
        clock_R = clock_R + base * rng.choice(shares, count) * rng.lognormal(0, machine.spread, count)
        clock_R = meet(clock_R, work.bytes, machine)
    (first, began), (last, ended) = opened[1], opened[-1]  # the first block is not waited for
    return {"step": (ended - began) / (last - first)}


def meet(clock_R: np.ndarray, size: int, machine: Machine) -> np.ndarray:
    """An all-reduce: nodes add up inside, then a tree of messages runs across all, and the bytes in rings."""
    count = len(clock_R)
    if count == 1:
        return clock_R
    for level in range(math.ceil(math.log2(count))):  # who has come is known to pairs, then to fours ..
        partner_R = np.arange(count) ^ (1 << level)
        partner_R = np.where(partner_R < count, partner_R, np.arange(count))
        clock_R = np.maximum(clock_R, clock_R[partner_R]) + 2 * machine.latency
    inside, nodes = min(count, machine.node), -(-count // machine.node)
    for peers, bandwidth, part in ((inside, machine.inside, size), (nodes, machine.across, size / inside)):
        for _ in range(2 * (peers - 1)):
            clock_R = clock_R + part / peers / bandwidth
    return np.full(count, clock_R.max())


# What is measured


def measured_work(corpus: Corpus, config: ModelConfig, tokens: int) -> tuple[Work, dict[int, float]]:
    """Shares and CPU times of real batches."""
    model = VRAE(config)
    shares: list[float] = []
    imbalance: dict[int, float] = {}
    operations = 0.0
    for count in (2, 8, 64):
        share = min(tokens, corpus.manifest["splits"]["train"]["tokens"] // (4 * count))
        batches = training_batches(corpus, config, share * count)
        ratios = []
        for step in range(2):
            parts = [batch for batch, _ in batches.parts(step, count)]
            costs = np.array([sum(layer.operations for layer in layers(model, batch)) for batch in parts])
            shares += (costs / costs.mean()).tolist()
            ratios.append(float(costs.max() / costs.mean()))
            operations = float(costs.sum()) / sum(batch.tokens for batch in parts)
        imbalance[count] = round(statistics.mean(ratios), 4)
    batches = training_batches(corpus, config, tokens)
    batches.windows_of(0)
    steps = range(min(batches.batches_per_epoch - 1, 8))
    began = time.process_time()
    made = sum(batch.tokens for step in steps for batch, _ in batches.parts(step))
    make = (time.process_time() - began) / made
    parameters = sum(parameter.numel() for parameter in model.parameters())
    turn_tokens = batches.tokens / batches.turns
    return Work(operations, parameters, tokens, shares, turn_tokens, make, planning(corpus, config)), imbalance


def planning(corpus: Corpus, config: ModelConfig) -> float:
    """Seconds for a turn of a whole block, with the lengths of this corpus over and over: large ones leave the cache."""
    split = corpus["train"]
    times = -(-BLOCK_TURNS // (len(split.turns) - 1))
    turns, dialogues = (
        np.concatenate([[0], np.cumsum(np.tile(np.diff(offsets), times))]) for offsets in (split.turns, split.dialogues)
    )
    large = Split("train", split.tokens, turns, dialogues, np.tile(split.speakers, times))
    began = time.process_time()
    Windows(large, BatchConfig(), config.context_turns).plan(np.random.default_rng(0))
    return (time.process_time() - began) / len(turns)


def read_again(corpus: Corpus, config: ModelConfig, tokens: int) -> dict[int, float]:
    """Operations of all parts over those of the batch in one piece: turns at the cuts are read twice."""
    model, found = VRAE(config), {}
    for count in (2, 8, 64):
        batches = training_batches(corpus, config, min(tokens * count, corpus.manifest["splits"]["train"]["tokens"] // 4))
        sums = [
            sum(layer.operations for batch, _ in batches.parts(0, parts) for layer in layers(model, batch))
            for parts in (count, 1)
        ]
        found[count] = round(sums[0] / sums[1], 4)
    return found


def training_batches(corpus: Corpus, config: ModelConfig, tokens: int) -> TrainingBatches:
    return TrainingBatches(corpus["train"], BatchConfig(tokens=tokens), config.context_turns, 0, config.latent_size)


def of_corpus(corpus: Corpus, work: Work, turns: int) -> dict[str, float]:
    """What a corpus of so many turns takes, when its turns are like those of this one."""
    split = corpus.manifest["splits"]["train"]
    per_turn = sum(size for name, size in sizes(corpus).items() if name.startswith("train.")) / split["turns"]
    blocks = max(-(-turns // BLOCK_TURNS), 1)
    learnt = turns * training_batches(corpus, ModelConfig(), 4096).turns / split["turns"]
    return {
        "bytes of a turn on disk": per_turn,
        "TB on disk": per_turn * turns / 1e12,
        "blocks of an epoch": blocks,
        "GB of one block's windows and order": 16 * BLOCK_TURNS / 1e9,
        "GB of them without blocks": 16 * turns / 1e9,
        "target tokens of an epoch": learnt * work.turn_tokens,
        "pages of 4 KiB that a step's share reads": work.tokens / work.turn_tokens * (1 + per_turn / 4096),
        "GB read to count the turns at the start": 8 * turns / 1e9,
        "seconds of planning an epoch, each process": work.plan * turns,
        "steps of an epoch on 1,024 processes": learnt * work.turn_tokens / work.tokens / 1024,
        "days of an epoch on one H100": learnt * work.turn_tokens / work.tokens * alone(work, H100) / 86_400,
    }


def sizes(corpus: Corpus) -> dict[str, int]:
    return {name: file["bytes"] for name, file in corpus.manifest["files"].items()}


def this_machine(corpus: Corpus, config: ModelConfig, work: Work) -> tuple[Machine, Work]:
    """Processes of this CPU, one thread each: a step's time against its tokens, an all-reduce's against its bytes."""
    seconds, operations, tokens = [], [], (1024, 2048, 4096)
    spread: list[float] = []
    for size in tokens:
        run = RunConfig(model=config, batches=BatchConfig(tokens=size), train=TrainConfig(device="cpu"))
        step = Step(run, corpus)
        step.run(0)
        rates = []
        for number in range(1, 6):
            [(batch, _)] = step.batches.parts(number)
            done = sum(layer.operations for layer in layers(step.model, batch))
            began = time.process_time()
            step.run(number)
            rates.append((time.process_time() - began) / done)
        seconds.append(statistics.median(rates) * work.operations * size)
        operations.append(work.operations * size)
        spread.append(statistics.pstdev(rates) / statistics.mean(rates))
    per_operation, fixed = np.polyfit(operations, seconds, 1)
    reduced = all_reduce_seconds([2**k for k in (10, 20, 24)])
    latency = reduced[2**10] / 4
    bandwidth = (2**24 - 2**20) / (reduced[2**24] - reduced[2**20])  # of two processes, each of which moves its bytes once
    print("seconds of a step, by tokens:", dict(zip(tokens, seconds, strict=True)), "of an all-reduce, by bytes:", reduced)
    machine = Machine(
        name="this CPU, gloo (measured)",
        rate=float(1 / per_operation),
        fixed=max(float(fixed), 0.0),
        inside=bandwidth,
        across=bandwidth,
        latency=latency,
        node=2,
        spread=statistics.median(spread),
    )
    return machine, Work(**{**asdict(work), "tokens": tokens[-1]})


def all_reduce_seconds(bytes_: list[int]) -> dict[int, float]:
    """Medians, of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    processes = [context.Process(target=_reduce, args=(rank, port, bytes_, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found: dict[int, float] = answers.get(timeout=300)
    for process in processes:
        process.join()
    return found


def _reduce(rank: int, port: int, bytes_: list[int], answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {}
    for size in bytes_:
        values, times = torch.zeros(size // 4), []
        for _ in range(12):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(values)
            times.append(time.perf_counter() - began)
        found[size] = statistics.median(times[2:])
    if rank == 0:
        answers.put(found)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
