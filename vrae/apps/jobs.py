"""The commands that use a trained model: one short function each over `Pipeline`.

A function takes the parsed command line and returns the exit code. Options that no input could be worked with are refused once,
before any is read: a job of no inputs looks at them alone. What a job needs of the rest of the package is imported when it
runs.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from vrae.apps.bulk import Result, print_json, run
from vrae.bundled import NAMES
from vrae.config import SEARCH, DecodingConfig, EvaluateConfig, ResponseConfig
from vrae.errors import UserError

if TYPE_CHECKING:
    from vrae.generation.pipeline import Pipeline


def respond(values: Namespace) -> int:
    pipeline, background = _load(values), _background(values)
    options = {"decoding": _config(DecodingConfig, values), "responses": _config(ResponseConfig, values)}
    pipeline.respond_many([], values.n, seed=values.seed, **options)

    def parse(value: Any) -> list[str]:
        context = _field(value, "context", "turns")
        turns = [context] if isinstance(context, str) else context
        if not isinstance(turns, list):
            raise UserError('expected a list of turns, or {"context": [..]}')
        return turns

    def job(contexts: list[list[str]]) -> list[Result]:
        found = pipeline.respond_many(contexts, values.n, seed=values.seed, background=background, **options)
        return [
            {"context": context, "replies": [_reply(reply, values.z) for reply in replies]}
            for context, replies in zip(contexts, found, strict=True)
        ]

    def show(result: Result) -> str:
        return "\n".join(f"{reply['score']:8.1f}  {reply['text']}" for reply in result["replies"])

    return run(_given(values.turns, one=True), parse, job, show, as_json=values.json, source=values.input)


def _reply(reply: Any, with_z: bool) -> Result:
    keys = ("text", "log_prob", "score", "tokens", *(["z"] if with_z else []))
    return {key: getattr(reply, key) for key in keys}


def chat(values: Namespace) -> int:
    from vrae.apps.chat import chat

    return chat(
        _load(values),
        input=sys.stdin,
        output=sys.stdout,
        notes=sys.stderr,
        n=values.n,
        seed=values.seed,
        decoding=_config(DecodingConfig, values),
        responses=_config(ResponseConfig, values),
        background=_background(values),
        as_json=values.json,
    )


def serve(values: Namespace) -> int:
    from vrae.apps.serve import serve, warn_of_strangers

    if values.name and values.model:
        raise UserError(f"a model is given twice: {values.name} and --model {values.model}. Leave one out")
    values.model = values.model or values.name
    space = None if values.model else _load(values, NAMES["sentences"], values.max_seconds)
    values.model = values.model or NAMES["dialogue"]
    auth = values.auth or os.environ.get("VRAE_AUTH", "")
    served = serve(
        _load(values, values.model, values.max_seconds),
        values.model,
        space=space,
        data=values.data,
        attributes=values.attributes,
        host=values.host,
        port=values.port,
        share=values.share,
        auth=auth,
    )
    warn_of_strangers(values.host, auth)
    if values.json:
        print_json({"url": served.local, "share_url": served.public})
    else:
        print(f"{served.public or served.local}    (Ctrl-C ends it)", flush=True)
    served.wait()
    return 0


_OF_DRAWS = ("temperature", "top_k", "top_p", "min_p")  # what a search does not read


def sample(values: Namespace) -> int:
    decoding = _config(DecodingConfig, values)
    unread = [f"--{name} {values[name]:g}" for name in _OF_DRAWS if values[name] != getattr(SEARCH, name)]
    if unread and (decoding.beams or not decoding.temperature):
        how = f"--beams {decoding.beams}" if decoding.beams else "--temperature 0"
        raise UserError(
            f"{' '.join(unread)}: for drawing words, and {how} draws none. Add --beams 0 and a --temperature above 0"
        )
    for found in _load(values).sample(values.n, seed=values.seed, decoding=None if decoding == SEARCH else decoding):
        if values.json:
            print_json(dataclasses.asdict(found))
        else:
            print(_text(dataclasses.asdict(found)))
    return 0


def reconstruct(values: Namespace) -> int:
    from vrae.generation.text_model import MAX_REPLIES, in_range, seed_of

    pipeline = _load(values)
    pipeline.need_latent()
    in_range("n", values.n, 0, MAX_REPLIES)
    seed_of(values.seed)

    def job(texts: list[str]) -> list[Result]:
        found = [dataclasses.asdict(result) for result in pipeline.reconstruct(texts, values.n, seed=values.seed)]
        return [{key: value for key, value in result.items() if values.n or key != "samples"} for result in found]

    def show(result: Result) -> str:
        mark = "=" if result["exact"] else " "
        bits = f"rate {result['rate']:.1f} + distortion {result['distortion']:.1f} nats"
        return "\n".join(
            [f"{mark} {result['reconstruction']}    ({bits})", *(f"  ~ {sample}" for sample in result.get("samples", []))]
        )

    return run(_given(values.texts), _one_text, job, show, as_json=values.json, source=values.input)


def interpolate(values: Namespace) -> int:
    from vrae.generation.pipeline import check_path

    pipeline = _load(values)
    pipeline.need_latent()
    check_path(values.steps, values.method)

    def parse(value: Any) -> tuple[list[str], list[str]]:
        context = value.get("context", []) if isinstance(value, dict) else values.context
        pair = _field(value, "texts")
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"interpolate takes two turns. Got {len(pair) if isinstance(pair, list) else pair!r}")
        return pair, context

    def job(pairs: list[tuple[list[str], list[str]]]) -> list[Result]:
        paths = (pipeline.interpolate(a, b, values.steps, method=values.method, context=context) for (a, b), context in pairs)
        return [{"steps": [dataclasses.asdict(step) for step in path]} for path in paths]

    def show(result: Result) -> str:
        lines = ["   t  back", *(f"{s['t']:5.2f} {s['cosine']:5.2f}{' ='[s['exact']]} {s['text']}" for s in result["steps"])]
        return "\n".join(lines)

    return run(_given(values.texts, one=True), parse, job, show, as_json=values.json, source=values.input)


def variations(values: Namespace) -> int:
    from vrae.generation.pipeline import check_ball
    from vrae.generation.text_model import seed_of

    pipeline = _load(values)
    pipeline.need_latent()
    check_ball(values.n, values.radius)
    seed_of(values.seed)

    def job(given: list[tuple[str, list[str]]]) -> list[Result]:
        settings = {"radius": values.radius, "seed": values.seed}
        return [
            {
                "text": text,
                "variations": [
                    dataclasses.asdict(found) for found in pipeline.variations(text, values.n, context=context, **settings)
                ],
            }
            for text, context in given
        ]

    def show(result: Result) -> str:
        return "\n".join(map(_text, result["variations"]))

    return run(_given(values.texts), _with_context(values), job, show, as_json=values.json, source=values.input)


def analogy(values: Namespace) -> int:
    pipeline = _load(values)
    pipeline.need_latent()

    def parse(value: Any) -> list[str]:
        texts = _field(value, "texts")
        if not isinstance(texts, list) or len(texts) != 3:
            raise UserError(f"analogy takes three turns, a - b + c. Got {len(texts) if isinstance(texts, list) else texts!r}")
        return texts

    def job(given: list[list[str]]) -> list[Result]:
        return [{"texts": texts, **dataclasses.asdict(pipeline.analogy(*texts))} for texts in given]

    return run(_given(values.texts, one=True), parse, job, _text, as_json=values.json, source=values.input)


def encode(values: Namespace) -> int:
    pipeline = _load(values)
    pipeline.need_latent()

    def job(given: list[tuple[str, list[str]]]) -> list[Result]:
        texts, contexts = [text for text, _ in given], [context for _, context in given]
        means, log_vars = pipeline.encode(texts, contexts)
        return [
            {"text": text, "mean": mean.tolist(), "log_var": log_var.tolist()}
            for text, mean, log_var in zip(texts, means, log_vars, strict=True)
        ]

    def show(result: Result) -> str:
        return " ".join(f"{value:.3f}" for value in result["mean"])

    rows: list[Result] = []
    code = run(
        _given(values.texts),
        _with_context(values),
        job,
        show,
        as_json=values.json,
        source=values.input,
        emit=rows.append if values.out else None,
    )
    if rows:
        _save_latents(rows, values.out, pipeline.model.config.latent_size)
    return code


def _save_latents(rows: Sequence[Result], out: str, latent_size: int) -> None:
    """One array [2, N, Z]: means, then log-variances. A line that failed is a row of NaN, and its message goes to stderr."""
    import io

    import numpy as np

    latents_2NZ = np.full((2, len(rows), latent_size), np.nan, np.float32)
    for place, row in enumerate(rows):
        if "error" in row:
            print(f"vrae: {row['error']}", file=sys.stderr)
        else:
            latents_2NZ[:, place] = row["mean"], row["log_var"]
    buffer = io.BytesIO()
    np.save(buffer, latents_2NZ, allow_pickle=False)
    _write(out, buffer.getvalue())


def score(values: Namespace) -> int:
    from vrae.evaluation.score import score

    pipeline = _load(values)
    score(pipeline, [], k=values.k, seed=values.seed)

    def job(given: list[tuple[str, list[str]]]) -> list[Result]:
        texts, contexts = [text for text, _ in given], [context for _, context in given]
        return [dataclasses.asdict(one) for one in score(pipeline, texts, contexts, k=values.k, seed=values.seed)]

    def show(result: Result) -> str:
        parts = f"{result['bits_latent']:.1f} latent + {result['bits_text']:.1f} text = {result['bits_total']:.1f} bits"
        return f"{parts}; importance-weighted {result['bits_iw']:.1f}; {result['tokens']} tokens    {result['text']}"

    return run(_given(values.texts), _with_context(values), job, show, as_json=values.json, source=values.input)


def neighbours_build(values: Namespace) -> int:
    from vrae.corpus.prepared import Corpus
    from vrae.generation.neighbours import Index
    from vrae.training.run_folder import corpus_of

    pipeline = _load(values)
    corpus = Corpus(values.data or corpus_of(Path(values.model)))
    index = Index.of_corpus(pipeline, corpus, values.split, quiet=values.quiet)
    index.save(values.out, overwrite=values.overwrite)
    left_out = index.source["turns"] - index.occurrences
    counts = {"turns": len(index), "occurrences": index.occurrences, "left_out": left_out}
    if values.json:
        print_json({"index": values.out, **counts})
    else:
        print(f"{counts['turns']:,} different turns of {counts['occurrences']:,} in {values.out}")
        print(f"{counts['left_out']:,} turns longer than those the model was trained on left out")
    return 0


def neighbours_query(values: Namespace) -> int:
    from vrae.generation.neighbours import Index

    index = Index.load(values.index, _load(values))
    index.query([], values.n, measure=values.measure, probes=values.probes)

    def job(texts: list[str]) -> list[Result]:
        found = index.query(texts, values.n, measure=values.measure, probes=values.probes)
        return [
            {"text": text, "neighbours": [dataclasses.asdict(one) for one in near]}
            for text, near in zip(texts, found, strict=True)
        ]

    def show(result: Result) -> str:
        return "\n".join(f"{one['distance']:8.2f} {one['count']:6,}  {one['text']}" for one in result["neighbours"])

    return run(_given(values.texts), _one_text, job, show, as_json=values.json, source=values.input)


def attributes_learn(values: Namespace) -> int:
    from vrae.generation.attributes import learn, read_labelled, read_sentences

    if len(values.files) > 2:
        raise UserError(f"attributes learn takes one labelled file, or two files of sentences. Got {len(values.files)}")
    if len(values.files) == 1:
        labels, sides = read_labelled(values.files[0])
    else:
        first, second = values.files
        labels, sides = (Path(first).stem, Path(second).stem), (read_sentences(first), read_sentences(second))
    attribute = learn(_load(values), *sides, name=values.name or Path(values.out).stem, labels=labels)
    attribute.save(values.out)
    if values.json:
        print_json({key: getattr(attribute, key) for key in ("name", "labels", "sentences", "distance", "accuracy")})
    else:
        counts = " and ".join(f"{count:,}" for count in attribute.sentences)
        print(f"{attribute.name}: from {labels[0]!r} to {labels[1]!r}, of {counts} different sentences")
        print(f"held-out sentences told apart by the latent: {attribute.accuracy:.1%}")
        print(f"saved in {values.out}")
    return 0


def attributes_move(values: Namespace) -> int:
    from vrae.generation.attributes import Attribute, move

    pipeline, attribute = _load(values), Attribute.load(values.attribute)
    move(pipeline, [], attribute, values.strength, along=values.along)

    def job(texts: list[str]) -> list[Result]:
        moved = move(pipeline, texts, attribute, values.strength, along=values.along)
        return [dataclasses.asdict(one) for one in moved]

    def show(result: Result) -> str:
        return f"{result['before']:6.2f} -> {result['after']:5.2f}  {result['moved']}"

    return run(_given(values.texts), _one_text, job, show, as_json=values.json, source=values.input)


def plot(values: Namespace) -> int:
    from vrae.apps.plot_command import plot

    names = ("model", "data", "split", "out", "by", "turns", "steps", "method", "paths", "seed", "device")
    out = plot(values.what, values.texts, **{name: values[name] for name in names})
    print_json({"picture": str(out)}) if values.json else print(f"drawn in {out}")
    return 0


def compress(values: Namespace) -> int:
    from vrae.evaluation.compression import compress

    text = _read(values.file)
    container, account = compress(_load(values), text, quiet=values.quiet)
    _write(values.out, container)
    if values.json:
        print_json({**dataclasses.asdict(account), "bits_turns": account.bits_turns, "bits_net": account.bits_net})
    else:
        each = account.bits_turns / max(account.turns, 1)
        print(f"{account.text_bytes:,} bytes -> {account.container_bytes:,}")
        print(f"{account.turns:,} turns in {account.bits_turns:,.0f} bits ({each:.1f} each)")
        print(f"{account.raw_lines:,} lines as they are")
    return 0


def decompress(values: Namespace) -> int:
    from vrae.evaluation.compression import decompress

    _write(values.out, decompress(_load(values), _read(values.file), name=values.file, quiet=values.quiet))
    return 0


def push(values: Namespace) -> int:
    if not values.model:
        raise UserError("vrae push needs --model: the run or model folder to publish")
    pipeline, report = _load(values), values.report
    if not report:
        beside = (Path(values.model) / place / "report.json" for place in ("report", ""))
        report = next((str(path) for path in beside if path.is_file()), "")
    options = {"report": report or None, "license": values.license, "language": values.language}
    if values.card:
        print(pipeline.card(values.id, **options))
        return 0
    url = pipeline.push_to_hub(values.id, private=values.private or None, revision=values.revision, half=values.half, **options)
    print_json({"id": values.id, "url": url}) if values.json else print(f"uploaded: {url}\nto use it: vrae.load({values.id!r})")
    return 0


def evaluate(values: Namespace) -> int:
    from vrae.apps.evaluate import evaluate
    from vrae.corpus.prepared import Corpus
    from vrae.distributed import processes
    from vrae.training.run_folder import corpus_of

    config = _config(EvaluateConfig, values)
    if values.run and values.model:
        raise UserError(f"a run is given twice: {values.run} and --model {values.model}. Leave one out")
    values.model = values.model or values.run or NAMES["dialogue"]
    pipeline, run = _load(values), Path(values.model)
    corpus = Corpus(values.data or corpus_of(run))
    with processes() as first:
        report = evaluate(pipeline, corpus, config, run=run, quiet=values.quiet or not first)
        if first:
            print_json(report.as_dict()) if values.json else print(report.table())
            if config.out and not values.json:
                print(f"written to {config.out}")
    return 0


def export(values: Namespace) -> int:
    from vrae.apps.export import EXAMPLE, export_onnx
    from vrae.generation.pipeline import load

    if values.format != "onnx":
        raise UserError(f"--format must be onnx. Got {values.format!r:.40}")
    info = export_onnx(load(values.run), values.out, overwrite=values.overwrite)
    if values.json:
        print_json({"out": values.out, **info})
    else:
        for name, graph in info["graphs"].items():
            print(f"{name:<10} {', '.join(graph['inputs'])} -> {', '.join(graph['outputs'])}")
        words = '"Hi!"' if info["context_turns"] else '"hello there" "see you tomorrow"'
        print(f"written to {values.out}. Next: python {Path(values.out, EXAMPLE)} {words}")
    return 0


def _load(values: Namespace, model: str | None = None, max_seconds: float | None = None) -> Pipeline:
    from vrae.generation.pipeline import load
    from vrae.training.hardware import pick_device

    device = str(pick_device(values.device))
    return load(values.model if model is None else model, device, max_seconds=max_seconds)


def _background(values: Namespace) -> Pipeline | None:
    if values.background and values.rank != "mmi":
        raise UserError(f"--background {values.background}: is read by --rank mmi alone. Pass --rank mmi, or leave it out")
    return _load(values, values.background) if values.background else None


def _config(cls: type[Any], values: Namespace) -> Any:
    """The settings of a configuration class that stand flat on the command line."""
    return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})


def _given(texts: list[str], one: bool = False) -> list[Any] | None:
    """What the command line gives: each text a value, or all of them `one`; None: it gives nothing, and lines are read."""
    if texts in ([], ["-"]):
        return None
    return [texts] if one else list(texts)


def _field(value: Any, *names: str) -> Any:
    """A JSON line may be the value itself or an object that holds it."""
    if isinstance(value, dict):
        for name in names:
            if name in value:
                return value[name]
        raise UserError(f"expected one of {', '.join(names)} in the object. Got {', '.join(map(str, value)) or 'nothing'}")
    return value


def _one_text(value: Any) -> Any:
    return _field(value, "text")


def _with_context(values: Namespace) -> Callable[[Any], tuple[Any, Any]]:
    """Reads a text and the turns before it: those of the line, or of --context."""
    return lambda value: (_field(value, "text"), value.get("context", []) if isinstance(value, dict) else values.context)


def _text(result: Result) -> str:
    return f"{result['log_prob']:8.1f}  {result['text']}"


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read: {getattr(error, 'strerror', None) or error}") from None


def _write(path: str, content: bytes) -> None:
    from vrae.files import write_file

    try:
        write_file(Path(path), content)
    except (OSError, ValueError) as error:
        raise UserError(f"--out {path}: cannot write: {getattr(error, 'strerror', None) or error}") from None
