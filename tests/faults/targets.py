"""Every reader and loader, each with sound input and a way to spoil it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from conftest import tiny_model
from faults.mutators import VALUES, hostile_json, mutated

from vrae.apps.cli import _run_config, parse
from vrae.apps.parser import build_parser
from vrae.config import SPLITS, DecodingConfig, PrepareConfig, RunConfig, SourceConfig, TrainConfig, from_dict
from vrae.corpus.batches import collate
from vrae.corpus.prepared import Corpus
from vrae.corpus.sources import open_source, read_dialogues
from vrae.corpus.tokenizer import Tokenizer
from vrae.errors import UserError
from vrae.evaluation.compression import compress, decompress
from vrae.evaluation.container import unpack
from vrae.evaluation.vectors import WordVectors
from vrae.files import MANIFEST, write_folder
from vrae.generation.attributes import Attribute, learn, move, read_labelled, read_sentences
from vrae.generation.neighbours import Index, Turn
from vrae.generation.pipeline import Pipeline, load
from vrae.model.folder import to_files
from vrae.training.checkpoint import Checkpoints
from vrae.training.optimizer import make_optimizer

TEXT = b"A: Hello, how are you?\nB: fine <3\n\nA: see http://x.org na\xc3\xafve\nB: yes__eou__\n"
TABLE = b'dialogue_id,speaker,text,split\n1,a,"hello, ""you""",train\n1,b,fine,train\n2,a,"two\nlines",test\n'
ROWS: tuple[Any, ...] = (
    ["hello", "fine"],
    "hello",
    {"turns": ["hello", "fine"], "speakers": ["a", "b"], "id": 7, "split": "train"},
    {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "hello"}]},
    {"context": "hello", "reply": "fine", "id": "x"},
    {"dialogue_id": 1, "speaker": "a", "text": "hello", "split": "dev"},
    {"transcript": "A: hello\nB: fine", "id": None},
    {"text": "hello", "label": "a"},
)
VECTORS = b"3 4\nhello 0.1 -2 3e-2 4\nyou 1 2 3 4\n. . 0 1 2 3\n"
LAYOUTS = ("auto", "auto", "auto", "turns", "chat", "pairs", "flat", "transcript", "utterances")

Input = Callable[[], object]


class World:
    """Sound folders and files to spoil, and a folder to spoil them in."""

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        self.folder, self.corpus = folder, corpus
        self.cleaning = {"mask_personal": True, "max_repeats": 3}
        self.model_files = self._model_files(context_turns=2, latent_size=4)
        self.several_models = (
            self.model_files,
            self._model_files(context_turns=1, prior="mixture", flow_steps=2),
            self._model_files(context_turns=0, batch_norm_scale=0.6, skip_latent=True, decoder_layers=2),
            self._model_files(context_turns=1, latent_size=0),
        )
        self.corpus_files = {path.name: path.read_bytes() for path in corpus.path.iterdir()}
        write_folder(folder / "sound", self.model_files)
        self.pipeline = Pipeline.load(folder / "sound")
        self.container = compress(self.pipeline, b"hello how are you\n\nfine\n\xff\n").container
        first = ["i am fine", "yes", "see you", "pizza is great", "no"]
        second = ["how are you", "what", "do you like pizza", "what is it", "how"]
        self.attribute = learn(self.pipeline, first, second, name="question")
        self.attribute.save(folder / "attribute.json")
        self.attribute_values = json.loads((folder / "attribute.json").read_bytes())
        turns = [Turn("hello how are you", 0, 0), Turn("fine", 0, 1), Turn("see you", 1, 0)]
        Index.build(self.pipeline, turns, {"corpus": "x"}).save(folder / "index")
        self.index_files = {p.name: p.read_bytes() for p in (folder / "index").iterdir() if p.name != MANIFEST}
        self.checkpoint_files = self._checkpoint_files()
        self.parquet = self._parquet()
        self.parser = build_parser()

    def path(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def refill(self, name: str, files: dict[str, bytes]) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file, data in files.items():
            (folder / file).write_bytes(data)
        return folder

    def _model_files(self, **overrides: Any) -> dict[str, bytes]:
        model = tiny_model(vocab_size=len(self.corpus.tokenizer), speakers=True, **overrides).float()
        info = {"corpus": {"cleaning": self.cleaning}, "run": {"batches": {"max_turn_tokens": 48}}, "step": 3}
        return to_files(model, self.corpus.tokenizer, info)

    def trained(self) -> tuple[Any, torch.optim.Optimizer]:
        model = self.pipeline.model
        return model, make_optimizer(model, None, TrainConfig(), "fp32")

    def _checkpoint_files(self) -> dict[str, bytes]:
        model, optimizer = self.trained()
        windows = self.pipeline.windows(["hello how are you"], [["fine"]])
        (-model(collate(windows, 2), torch.zeros(1, 4)).elbo_B.mean()).backward()
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        saved = Checkpoints(self.folder / "run", 1)
        path = saved.save(model, optimizer, self.corpus.tokenizer, {}, {"step": 1, "best_step": 1})
        return {file.name: file.read_bytes() for file in path.iterdir()}

    def _parquet(self) -> tuple[bytes, ...]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        files = []
        for table in (
            pa.table(
                {
                    "dialogue_id": [1, 1, 2],
                    "text": ["hello", "fine", None],
                    "at": pa.array([0, 1, 2], pa.timestamp("us", "UTC")),
                }
            ),
            pa.table({"turns": [["hello", "fine"], ["see you"]], "day": pa.array([1, 2], pa.date32())}),
            pa.table({"messages": [[{"role": "a", "content": "hello"}]], "x": [1.5]}),
        ):
            for options in ({"compression": "none"}, {"compression": "snappy", "use_dictionary": False}):
                file = io.BytesIO()
                pq.write_table(table, file, **options)
                files.append(file.getvalue())
        return tuple(files)


def _read(world: World, path: Path, rng: Random) -> Input:
    settings: dict[str, Any] = {"layout": rng.choice(LAYOUTS), "skip_bad_rows": rng.choice((True, False))}
    if rng.randint(0, 4) == 0:
        settings["text_column"] = rng.choice(("text", "turns", "x", "", "\ud800"))

    def read() -> None:
        list(read_dialogues(str(path), **settings))

    return rng.choice((read, read, read, lambda: read_sentences(path), lambda: read_labelled(path)))


def text(world: World, rng: Random) -> Input:
    return _read(world, world.path("x.txt", mutated(rng, TEXT)), rng)


def jsonl(world: World, rng: Random) -> Input:
    row = rng.choice(ROWS)
    lines = [json.dumps(row).encode(), hostile_json(rng, row), json.dumps(row).encode()]
    return _read(world, world.path("x.jsonl", b"\n".join(lines[rng.randint(0, 1) :])), rng)


def table(world: World, rng: Random) -> Input:
    suffix = rng.choice((".csv", ".tsv"))
    data = TABLE if suffix == ".csv" else TABLE.replace(b",", b"\t")
    return _read(world, world.path("x" + suffix, mutated(rng, data)), rng)


def parquet(world: World, rng: Random) -> Input:
    return _read(world, world.path("x.parquet", mutated(rng, rng.choice(world.parquet))), rng)


def source(world: World, rng: Random) -> Input:
    """Names of sources, of which none is on the Hub: they are not opened there."""
    parts = ("..", "/", "a", "\0", "~", "~nobody-here", ".txt", ".jsonl", "x" * 5000, "\ud800", "\x1b[2J", "\n", "@", " ", "é")
    name = "".join(rng.choice(parts) for _ in range(rng.randint(0, 5)))

    def call() -> None:
        open_source(SourceConfig(name))
        Corpus(f"{world.folder}/a/b/c/d/e/f/{name}")

    return call


def vectors(world: World, rng: Random) -> Input:
    path = world.path("x.vec", mutated(rng, VECTORS[rng.choice((0, 4)) :], (*_NUMBERS, b"9" * 5000 + b" 4\n")))
    return lambda: WordVectors.read(path, ["hello", "you", "\ud800"]).rows(["hello", "you"], rng.choice(("drop", "random")))


_NUMBERS = (
    b" ",
    b"\n",
    b"\t",
    b"1e39",
    b"1e309",
    b"-1e300",
    b"1e-320",
    b"nan",
    b"inf",
    b"1_0",
    b"\xff",
    b"\0",
    b"0 0",
    b"\x1c",
)


def attribute(world: World, rng: Random) -> Input:
    path = world.path("x.json", hostile_json(rng, world.attribute_values))

    def call() -> None:
        found = Attribute.load(path)
        z = np.ones((1, len(found.normal_Z)))
        found.log_odds(found.project(z))
        found.step("means")
        found.step("normal")
        if found.model == world.attribute.model and rng.randint(0, 9) == 0:
            move(world.pipeline, ["hello"], found, 10.0)

    return call


def config(world: World, rng: Random) -> Input:
    """What `from_dict` builds out of JSON."""
    cls = rng.choice((RunConfig, PrepareConfig, DecodingConfig))
    data = hostile_json(rng, dataclasses.asdict(cls()))

    def call() -> None:
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            return
        from_dict(cls, values, "x")

    return call


def settings_file(world: World, rng: Random) -> Input:
    """A YAML file through the parser of the command line, which ends the program with 2 where it cannot be read."""
    plain = b"model:\n  latent_size: 8\n  dropout: 0.5\ntrain:\n  max_steps: 10\n  device: cpu\nobjective:\n  beta: 1.0\n"
    value = {"model": {"latent_size": 8, "prior": "auto"}, "train": {"max_steps": 10}, "objective": {"aggressive": False}}
    data = mutated(rng, plain) if rng.randint(0, 1) else hostile_json(rng, value)
    path = world.path("x.yaml", data.decode("utf-8", "replace").encode())
    arguments = ["train", "--config", str(path), "--data", "corpus", "--out", "run"]

    def call() -> None:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
            _run_config(parse(world.parser, arguments).train)

    return call


def tokenizer(world: World, rng: Random) -> Input:
    data = mutated(rng, world.model_files["tokenizer.model"])
    return lambda: _use_tokenizer(Tokenizer(data))


def _use_tokenizer(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["hello ☃ how \u202e are", ""])
    tokenizer.decode([*ids[0], 0, 3, len(tokenizer) - 1])
    tokenizer.pieces(ids[0])


def model_config(world: World, rng: Random) -> Input:
    data = hostile_json(rng, json.loads(world.model_files["config.json"]))
    return _open_model(world, {**world.model_files, "config.json": data}, rng)


def model_weights(world: World, rng: Random) -> Input:
    files = rng.choice(world.several_models)
    data = files["model.safetensors"]
    if rng.randint(0, 1):
        data = _spoilt_tensors(rng, data)
    elif rng.randint(0, 1):
        size = struct.unpack_from("<Q", data)[0]
        head = hostile_json(rng, json.loads(data[8 : 8 + size]))
        data = struct.pack("<Q", len(head)) + head + data[8 + size :]
    else:
        data = mutated(rng, data)
    return _open_model(world, {**files, "model.safetensors": data}, rng)


def _spoilt_tensors(rng: Random, data: bytes) -> bytes:
    tensors = safetensors.torch.load(data)
    name = rng.choice(sorted(tensors))
    kind = rng.randint(0, 4)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[rng.choice(("x", "../x", "a" * 5000, "\x1b[2J", name + ".x"))] = torch.zeros(1)
    elif kind == 2:
        tensors[name] = tensors[name].flatten()[: rng.randint(0, 3)].clone()
    elif kind == 3:
        dtype = rng.choice((torch.float16, torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float64))
        tensors[name] = tensors[name].to(dtype)
    else:
        values = (float("nan"), float("inf"), 3e38, -3e38, 1e20, 0.0, 1e-40, -1e5, 1e4, -1e4, 1e4, -1e4)
        tensors[name] = tensors[name].fill_(rng.choice(values))
    return safetensors.torch.save(tensors)


def _open_model(world: World, files: dict[str, bytes], rng: Random) -> Input:
    folder = world.refill("model", files)
    used = rng.randint(0, 5) == 0

    def call() -> None:
        pipeline = load(folder)
        if used:
            _use(pipeline)

    return call


def _use(pipeline: Pipeline) -> None:
    """One of everything; a UserError of one job does not keep the next from being tried."""
    for job in (
        lambda: list(pipeline.sample(2, seed=1)),
        lambda: list(pipeline.sample(2, seed=1, decoding=DecodingConfig(beams=2, max_tokens=5))),
        lambda: pipeline.respond(["hello", "fine"], 2, seed=1),
        lambda: pipeline.reconstruct(["hello"], 1, seed=1),
        lambda: pipeline.interpolate("hello", "fine", 3),
        lambda: pipeline.variations("hello", 1, seed=1),
        lambda: pipeline.evidence(pipeline.windows(["hello"]), 2, 0),
        lambda: Index.build(pipeline, [Turn("hello", 0, 0)]).query(["fine"], 1),
        lambda: Index.of_corpus(pipeline, _use_corpus, "test") if _use_corpus else None,
    ):
        with contextlib.suppress(UserError):
            job()


_use_corpus: Corpus | None = None


def run_folder(world: World, rng: Random) -> Input:
    """A run whose pointers lead elsewhere."""
    name = rng.choice(
        ("step-1", "../../sound", "/etc", "..", ".", "", "\0", "a" * 5000, "step-1\n\n", str(world.folder / "sound"))
    )
    folder = world.refill("pointing", {"config.jsox": b""})
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / rng.choice(("best", "last"))).write_bytes(
        mutated(rng, name.encode()) if rng.randint(0, 1) else name.encode()
    )
    return lambda: load(folder)


def corpus(world: World, rng: Random) -> Input:
    files = dict(world.corpus_files)
    manifest = json.loads(files[MANIFEST])
    kind = rng.randint(0, 2)
    if kind == 0:
        files[MANIFEST] = hostile_json(rng, manifest)
    else:
        name = rng.choice(sorted(manifest["files"]))
        files[name] = _spoilt_array(rng, files[name]) if kind == 1 and name.endswith(".bin") else mutated(rng, files[name])
        manifest["files"][name]["bytes"] = len(files[name])
        files[MANIFEST] = json.dumps(manifest).encode()
    folder = world.refill("corpus", files)

    def call() -> None:
        opened = Corpus(folder)
        _ = opened.fingerprint
        for split in SPLITS:
            chosen = opened[split]
            for dialogue in range(len(chosen.dialogues) - 1):
                for place in range(chosen.dialogues[dialogue], chosen.dialogues[dialogue + 1]):
                    opened.tokenizer.decode(chosen.turn(place))
                    _ = chosen.speakers[place]
            assert not len(chosen.tokens) or int(chosen.tokens.max()) < len(opened.tokenizer)

    return call


def _spoilt_array(rng: Random, data: bytes) -> bytes:
    size = 8 if len(data) % 8 == 0 else 1
    at = size * rng.randint(0, max(len(data) // size - 1, 0))
    value = rng.choice((0, -1, 1, 2**40, -(2**63), 2**63 - 1, 65535))
    return data[:at] + (struct.pack("<q", value) if size == 8 else b"\xff") + data[at + size :]


def index(world: World, rng: Random) -> Input:
    files = dict(world.index_files)
    name = rng.choice(sorted(files))
    if name == "index.json" and rng.randint(0, 3):
        files[name] = hostile_json(rng, json.loads(files[name]))
    elif name.endswith(".npy") and rng.randint(0, 1):
        head, values = files[name][:128], files[name][128:]
        files[name] = head + _spoilt_array(rng, values) if rng.randint(0, 1) else mutated(rng, head) + values
    else:
        files[name] = mutated(rng, files[name])
    folder = world.refill("near", {})
    if rng.randint(0, 4):
        write_folder(folder, files)
    else:
        manifest = json.loads((world.folder / "index" / MANIFEST).read_bytes())
        world.refill("near", {**files, MANIFEST: hostile_json(rng, manifest)})

    def call() -> None:
        found = Index.load(folder, world.pipeline)
        _ = found.occurrences
        found.query_vectors(np.zeros((1, 4), np.float32), 3)

    return call


def checkpoint(world: World, rng: Random) -> Input:
    """A checkpoint that is damaged, or made to hold other things than training saves."""
    files = {name: data for name, data in world.checkpoint_files.items() if name != MANIFEST}
    name = rng.choice((*sorted(files), "optimizer.safetensors", "trainer.json"))
    if name.endswith("json"):
        files[name] = hostile_json(rng, json.loads(files[name]))
    elif name.endswith("safetensors") and rng.randint(0, 1):
        files[name] = _spoilt_tensors(rng, files[name])
    else:
        files[name] = mutated(rng, files[name])
    folder = "resumed/checkpoints/step-00000001"
    if rng.randint(0, 3):
        write_folder(world.folder / folder, files)
    else:
        world.refill(folder, {**files, MANIFEST: world.checkpoint_files[MANIFEST]})
    for pointer in ("best", "last"):
        world.path(f"resumed/checkpoints/{pointer}", b"step-00000001")
    model, optimizer = world.trained()
    return lambda: Checkpoints(world.folder / "resumed", 1).restore(model, optimizer)


def frame(world: World, rng: Random) -> Input:
    """A container that is only taken apart."""
    data = _spoilt_container(world, rng)
    return lambda: unpack(data, "x")


def container(world: World, rng: Random) -> Input:
    data = _spoilt_container(world, rng)
    return lambda: decompress(world.pipeline, data)


def _spoilt_container(world: World, rng: Random) -> bytes:
    size = struct.unpack_from("<I", world.container, 10)[0]
    head, words = world.container[14 : 14 + size], world.container[14 + size :]
    kind = rng.randint(0, 4)
    if kind == 0:
        return mutated(rng, world.container)
    if kind == 1:
        words = mutated(rng, words)
    else:
        values = json.loads(head)
        if kind == 2:
            for name in rng.sample(("turns", "raw", "blank", "fineness", "reach", "spread", "digest_words", "size"), 2):
                values[name] = rng.choice((0, 1, 2, 3, 5, 40, 1000, -1000, 16384, 10**5))
            head = json.dumps(values).encode()
        else:
            head = hostile_json(rng, values)
    body = struct.pack("<I", rng.choice((len(head), len(head), len(head), 0, 2**32 - 1))) + head + words
    return struct.pack("<5sBI", b"vraez", 1, zlib.crc32(body)) + body


PIECES = (
    *(
        "hello",
        "how are you?",
        "\0",
        "\x1b[2J",
        "\u202e",
        "\u2066",
        "\ud800",
        "\udfff",
        "\ufeff",
        "\ufffd",
        "\U0010ffff",
        "é",
        "🎉",
    ),
    *("<s>", "</s>", "<unk>", "<pad>", "<email>", "a@b.c", "http://", "+44 20 ", "0" * 50, "a" * 500, "@", ".", "\u0300" * 100),
    *("\u200d", "\r\n", "\t", " " * 50, "▁", "<0x0A>", "a." * 200, "1-" * 200, "a" * 10_000_000),
)


def prompt(world: World, rng: Random) -> Input:
    def text() -> Any:
        made = "".join(rng.choice(PIECES[:-1]) for _ in range(rng.randint(0, 6)))
        return made if rng.randint(0, 15) else rng.choice((PIECES[-1], *VALUES))

    pipeline, a, b, context = world.pipeline, text(), text(), [text() for _ in range(rng.randint(0, 3))]
    number = rng.choice((0, 1, 2, 3, -1, 10**9, 10**30, True, None, 1.0, "1", float("nan")))
    values = (0.0, 1e-320, 1e-30, 0.5, 1.0, 5.0, float("nan"), float("inf"), -1.0)
    jobs: tuple[Input, ...] = (
        lambda: pipeline.respond(context if rng.randint(0, 3) else a, 1, seed=1),
        lambda: pipeline.respond(["hello"], 1, seed=number),
        lambda: pipeline.reconstruct([a, b], 1, seed=1),
        lambda: pipeline.encode([a], [context]),
        lambda: pipeline.interpolate(a, b, 2),
        lambda: pipeline.interpolate("hello", "fine", number),
        lambda: pipeline.variations(a, 1, seed=1),
        lambda: pipeline.variations("hello", 1, seed=1, radius=rng.choice(values)),
        lambda: pipeline.analogy(a, b, a),
        lambda: list(pipeline.sample(number, seed=1)) if number != 3 else None,
        lambda: list(pipeline.sample(1, seed=1, decoding=_decoding(rng, values))),
        lambda: pipeline.decode_latents(np.full((1, 4), rng.choice((0.0, 1e10, 3e38, -3e38, 1e300, float("nan"))))),
        lambda: Index.build(pipeline, [Turn("hello", 0, 0)]).query([a], 1),
        lambda: compress(pipeline, mutated(rng, b"hello\n\nfine\n")),
    )
    return rng.choice(jobs)


def _decoding(rng: Random, values: tuple[float, ...]) -> DecodingConfig:
    counts = (0, 1, 2, 128, 10**30, -1)
    return DecodingConfig(
        temperature=rng.choice(values),
        top_p=rng.choice(values),
        min_p=rng.choice(values),
        top_k=rng.choice(counts),
        repetition_penalty=rng.choice((1.0, 100.0, float("nan"))),
        no_repeat_ngram=rng.choice(counts),
        beams=rng.choice((0, 0, 2)),
        max_tokens=rng.choice((1, 5, 128)),
    )


class Target(NamedTuple):
    make: Callable[[World, Random], Input]
    few: int  # inputs in the normal run
    many: int  # in the long one


TARGETS = {
    target.make.__name__: target
    for target in (
        Target(text, 150, 14_000),
        Target(jsonl, 300, 20_000),
        Target(table, 200, 16_000),
        Target(parquet, 50, 4_000),
        Target(source, 60, 3_000),
        Target(vectors, 150, 12_000),
        Target(attribute, 200, 12_000),
        Target(config, 200, 12_000),
        Target(settings_file, 12, 800),
        Target(tokenizer, 60, 4_000),
        Target(model_config, 60, 3_000),
        Target(model_weights, 60, 3_000),
        Target(run_folder, 30, 1_000),
        Target(corpus, 60, 2_000),
        Target(index, 60, 3_000),
        Target(checkpoint, 80, 4_000),
        Target(frame, 150, 8_000),
        Target(container, 50, 1_500),
        Target(prompt, 60, 2_000),
    )
}
