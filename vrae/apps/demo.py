"""`vrae demo`: the main job from nothing to replies, on the embedded corpus.

One model does both jobs: with earlier turns it responds; without, it is the autoencoder that samples, reconstructs and
interpolates (see configs/demo.yaml).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from vrae.config import CHITCHAT_CLEANING, PrepareConfig, RunConfig, SourceConfig
from vrae.errors import UserError
from vrae.files import write_folder

# Lower case and few pieces: in six minutes the model should learn words, not their spellings.
CLEANING = dataclasses.replace(CHITCHAT_CLEANING, lowercase=True, restore_apostrophes=True)
CORPUS = PrepareConfig(SourceConfig("chitchat"), CLEANING, vocab_size=4000)
PROMPTS = (
    ("How was your weekend?",),
    ("What do you like to do for fun?",),
    ("I just got back from the gym.",),
    ("Hi!", "Hello, how are you?"),
    ("Do you have any pets?", "Yes, I have two cats.", "What are their names?"),
)
SENTENCES = ("how are you today?", "i am going home", "that sounds like a lot of fun!", "what is your favorite movie?")
PATH = ("i am going home", "what do you want to eat?")


def demo(config: RunConfig, out: Path, seed: int) -> None:
    """Prepares the corpus into out/corpus, trains into out/run, leaves the model in out/model and shows what it does.

    What is there already is used again.

    Raises:
        UserError: `out` cannot be written.
    """
    from vrae.apps.plots import plot_training
    from vrae.corpus.batches import Windows
    from vrae.corpus.prepared import Corpus, prepare
    from vrae.evaluation.likelihood import measure
    from vrae.generation.pipeline import Pipeline, model_folder
    from vrae.model.folder import CONFIG, TOKENIZER, WEIGHTS
    from vrae.training.trainer import train

    began = time.monotonic()
    if (out / "corpus" / "manifest.json").is_file():
        corpus = Corpus(out / "corpus")
        print(f"[1/3] corpus: using {corpus.path}", flush=True)
    else:
        print("[1/3] corpus: preparing chitchat, 4,004 human conversations", flush=True)
        corpus = prepare(CORPUS, out / "corpus", overwrite=True)
    if (out / "model" / CONFIG).is_file():
        print(f"[2/3] model: using {out / 'model'} (remove {out} to train anew)", flush=True)
    else:
        ends = {"steps": config.train.max_steps, "minutes": config.train.max_minutes}
        print(f"[2/3] model: training for {' or '.join(f'{n:g} {unit}' for unit, n in ends.items() if n)}", flush=True)
        run = out / "run"
        train(config, corpus, run, resume=(run / "checkpoints" / "last").is_file())
        best = model_folder(run)
        write_folder(out / "model", {name: (best / name).read_bytes() for name in (CONFIG, WEIGHTS, TOKENIZER)})
    pipeline = Pipeline.load(out / "model")
    bound = measure(pipeline.model, Windows(corpus["validation"], config.batches, 0), limit=2000)

    print("[3/3] what the model does\n")
    for turns in PROMPTS:
        print("\n".join(f"> {turn}" for turn in turns))
        for reply in pipeline.respond(turns, n=5, seed=seed):
            print(f"    {reply.text}")
    print("\nturns drawn from the prior")
    for sample in pipeline.sample(5, seed=seed):
        print(f"    {sample.text}")
    print("\nreconstructions (text -> its mean latent -> text)")
    for result in pipeline.reconstruct(SENTENCES):
        print(f"    {result.text}  ->  {result.reconstruction}")
    print(f"\nfrom {PATH[0]!r} to {PATH[1]!r}")
    for step in pipeline.interpolate(*PATH, steps=7):
        print(f"    {step.t:4.2f}  {step.text}")
    print(
        f"\nautoencoder on {bound.turns:,} validation turns without context: rate {bound.rate:.1f} nats/turn, "
        f"{bound.active_units} of {bound.latent_size} units active, -elbo {-bound.elbo:.1f} nats/turn; "
        f"latent {bound.collapse.state}"
    )
    picture = out / "training.png"
    try:
        plot_training(out / "run", picture)
    except UserError as error:
        print(f"no picture: {error}")
    print(
        f"{time.monotonic() - began:.0f} seconds. Saved in {out}: corpus, run (metrics.jsonl, checkpoints), model, "
        f"{picture.name}\n"
        "next:\n"
        f'    vrae respond "What did you have for lunch?" -n 5 --model {out / "model"}\n'
        f'    vrae interpolate "see you tomorrow" "i love this song" --model {out / "model"}\n'
        f"    vrae demo --minutes 60 --out better"
    )
