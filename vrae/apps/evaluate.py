"""`vrae evaluate`: every estimator over a split, put together into one report.

Each function measures one section; none computes a figure itself.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import platform
from pathlib import Path

import numpy as np
import torch

from vrae import __version__
from vrae.apps.plots import plot_latent_map, plot_rate_per_dimension, plot_training
from vrae.config import SEARCH, BatchConfig, DecodingConfig, EvaluateConfig, ResponseConfig
from vrae.corpus.batches import Windows
from vrae.corpus.prepared import Corpus
from vrae.distributed import first
from vrae.errors import DataError, UserError
from vrae.evaluation.dialogue import Replies, needed_words, score_replies
from vrae.evaluation.likelihood import Bound, measure
from vrae.evaluation.paths import draw_pairs, interpolation, sentences
from vrae.evaluation.quality import (
    draw_samples,
    real_turns,
    reconstruction,
    text_quality,
)
from vrae.evaluation.report import Figure, Report, Section, figures
from vrae.evaluation.vectors import WordVectors
from vrae.generation.pipeline import Pipeline, load
from vrae.training.judge import reverse_perplexity

PROMISED = (
    "split", "turns", "tokens", "elbo", "rate", "distortion", "nll_iw", "k", "perplexity", "bits_per_token",
    "mutual_information", "active_units", "latent_size", "collapse",
)  # fmt: skip
_TURN = "nats per turn"


def evaluate(
    pipeline: Pipeline, corpus: Corpus, config: EvaluateConfig, *, run: Path | None = None, quiet: bool = False
) -> Report:
    """Measures a model on a split. With `config.out`, also writes the report and the pictures there.

    Under torch.distributed the processes share the bound; the other sections are the first one's alone.

    Args:
        pipeline: the model.
        corpus: prepared with the model's tokenizer.
        config: what to measure.
        run: its run folder, for the curves of training.
        quiet: no bar.

    Raises:
        UserError: the corpus has another tokenizer, or something asked for cannot be done.
    """
    model, limit = pipeline.model, config.max_turn_tokens or pipeline.longest_turn
    if corpus.tokenizer.sha256 != pipeline.tokenizer.sha256:
        raise UserError(
            f"--data {corpus.path}: its tokenizer is not the model's. Prepare it with --tokenizer MODEL/tokenizer.model"
        )
    judge = load(config.judge) if config.judge else None
    windows = Windows(
        corpus[config.split], BatchConfig(tokens=max(4096, 16 * (limit + 1)), max_turn_tokens=limit), model.config.context_turns
    )
    bound = measure(model, windows, limit=config.max_turns, k=config.k, seed=config.seed, progress=not quiet)
    sections = [_bound(bound), _bits(bound), _latent(bound)]
    if first() and config.samples and model.config.latent_size:
        sections.append(_reconstruction(pipeline, windows, config))
    if first() and config.samples:
        sections.append(_samples(pipeline, windows, judge, config, quiet))
    if first() and config.paths and model.config.latent_size:
        sections.append(_paths(pipeline, corpus, judge, config))
    if first() and config.contexts and model.config.context_turns:
        sections += _replies(pipeline, windows, corpus, config)
    report = Report(
        title=f"{config.split} split of {corpus.manifest['source']['name']}",
        sections=sections,
        promised=PROMISED,
        warnings=[*bound.warnings, *([bound.collapse.words] if "collapsed" in bound.collapse.state else [])],
        provenance={
            "split": config.split,
            "max_turn_tokens": limit,
            "left_out": f"{windows.left_out} turns with more tokens",
            "seed": config.seed,
            "context_turns": model.config.context_turns,
            "step": pipeline.info.get("step"),
            "corpus": corpus.fingerprint,
            "vrae": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(model.device),
        },
        pictures={
            "training.png": "Training",
            "rate_per_dimension.png": "Rate of each latent dimension",
            "latent_map.png": "Posterior means of turns",
        },
    )
    if config.out and first():
        _draw(pipeline, windows, bound, config, run)
        report.save(config.out)
    return report


def _bound(bound: Bound) -> Section:
    units = {"turns": "", "tokens": "end marks included", "elbo": _TURN, "rate": _TURN, "distortion": _TURN, "k": "draws"}
    units["nll_iw"] = _TURN  # without draws it is not there, and shown as such
    if bound.k:
        units |= {
            "nll_prior": _TURN,
            "effective_samples": f"of {bound.k}, median",
            "poor_turns": "share of turns",
        }
    units |= {"perplexity": "per token", "bits_per_token": ""}
    if bound.nats_per_dialogue is not None:
        units |= {"dialogues": "measured whole", "nats_per_dialogue": "-elbo"}
    lines = ["log p(x | c) >= elbo = -(distortion + rate); nothing is weighted. Errors are standard errors over turns."]
    if bound.k:
        lines.append(
            f"nll_iw: importance-weighted with {bound.k} draws from the posterior; nll_prior: the same with draws from the "
            "prior, for comparison. Perplexity and bits per token are of nll_iw."
        )
    return Section("Bound", figures(bound, **units), lines)


def _bits(bound: Bound) -> Section:
    """The same in the other units."""
    names = ["elbo", "rate", "distortion", *(["nll_iw"] if bound.k else [])]
    found = [
        Figure(f"{name}_{unit}", value, unit.replace("_", " "))
        for name in names
        for unit, value in bound.units(name).items()
        if unit != "nats_per_turn"
    ]
    return Section("Units", found, ["What a sender pays: rate for z, distortion for the turn given z."])


def _latent(bound: Bound) -> Section:
    units = {"latent_size": "", "active_units": "", "mutual_information": "nats", "mutual_information_most": "nats, log N"}
    units |= {"aggregated_kl": "nats"}
    found = figures(bound, **units)
    found += [Figure("rate_per_dimension", bound.rate_per_dimension, _TURN), Figure("collapse", bound.collapse.state)]
    return Section("Latent", found, [bound.collapse.words])


def _reconstruction(pipeline: Pipeline, windows: Windows, config: EvaluateConfig) -> Section:
    quality = reconstruction(pipeline, (batch for _, batch in windows.in_order(config.samples)))
    units = {"exact": "share of turns", "token_accuracy": "share of tokens", "bleu": "0 to 1"}
    found = [dataclasses.replace(f, key=f"reconstruction_{f.key}") for f in figures(quality, **units)]
    return Section("Reconstruction", found, [f"{quality.turns} turns, posterior mean, greedy. {quality.bleu_signature}"])


def _samples(pipeline: Pipeline, windows: Windows, judge: Pipeline | None, config: EvaluateConfig, quiet: bool) -> Section:
    drawn = draw_samples(pipeline, windows, config.samples, seed=config.seed)
    real = real_turns(windows, pipeline.tokenizer, config.samples)
    found: list[Figure] = []
    lines = [f"{len(drawn.texts)} samples, ancestral (temperature 1, nothing cut off), beside {len(real)} real turns."]
    for name, texts in (("samples", drawn.texts), ("real", real)):
        quality = text_quality(texts, judge, seed=config.seed)
        found += [Figure(f"{name}_distinct_{n}", share, "share") for n, share in enumerate(quality.distinct, 1)]
        found.append(Figure(f"{name}_self_bleu", quality.self_bleu.scores[-1], "BLEU-4"))
        if quality.forward:
            found.append(Figure(f"{name}_forward_perplexity", quality.forward.value, "per token", quality.forward.error))
        lines.append(f"{name}: {quality.self_bleu.statement}")
    if judge:
        lines.append(f"forward perplexity: read by the language model {config.judge}")
    if config.reverse:
        held_out = real_turns(windows, pipeline.tokenizer)
        many = draw_samples(pipeline, windows, max(config.samples, 10_000), seed=config.seed).texts
        reverse = reverse_perplexity(many, held_out, pipeline.tokenizer, quiet=quiet)
        found.append(Figure("samples_reverse_perplexity", reverse.value, "per token", reverse.error))
        lines.append(f"reverse perplexity: of {reverse.texts} real turns, read by a language model of {len(many)} samples")
    return Section("Samples", found, lines)


def _paths(pipeline: Pipeline, corpus: Corpus, judge: Pipeline | None, config: EvaluateConfig) -> Section:
    try:
        among = sentences(corpus[config.split], corpus.tokenizer)
    except DataError as error:  # a split without short turns has none, which is no reason to withhold the rest
        return Section("Interpolation", [], [f"not measured. {error}"])
    pairs = draw_pairs(among, config.paths, seed=config.seed)
    quality = interpolation(pipeline, pairs, judge=judge)
    units = {"exact_ends": "share", "distinct": "texts of 7", "step_change": "share of tokens", "inner_exact": "share"}
    found = [dataclasses.replace(f, key=f"paths_{f.key}") for f in figures(quality, **units, inner_cosine="")]
    for name, perplexity_ in (("inner", quality.forward), ("given", quality.forward_given)):
        if perplexity_:
            found.append(Figure(f"paths_{name}_forward_perplexity", perplexity_.value, "per token", perplexity_.error))
    order = quality.monotony.rank_correlation
    found.append(Figure("paths_rank_correlation", order.value, "t and distance, Spearman", order.error))
    how = f"{config.paths} pairs of turns of 2 to 8 tokens, 7 points, slerp, the best of {SEARCH.beams} beams."
    return Section("Interpolation", found, [how])


def _replies(pipeline: Pipeline, windows: Windows, corpus: Corpus, config: EvaluateConfig) -> list[Section]:
    """A section for each protocol."""
    decoding, K = DecodingConfig(), pipeline.model.config.context_turns
    split, decode = corpus[config.split], corpus.tokenizer.decode
    with_context = windows.target_N[windows.target_N > windows.start_N]
    chosen = with_context[np.linspace(0, len(with_context) - 1, min(config.contexts, len(with_context))).astype(np.int64)]
    starts = dict(zip(windows.target_N.tolist(), windows.start_N.tolist(), strict=True))
    contexts = [[decode(split.turn(i)) for i in range(max(starts[turn], turn - K), turn)] for turn in chosen.tolist()]
    plain = ResponseConfig(latents="independent", min_change=0.0)  # the model's own replies, of which no two are the same
    answers = pipeline.respond_many(contexts, config.replies, seed=config.seed, decoding=decoding, responses=plain)
    pairs = [
        Replies([decode(split.turn(turn))], [reply.text for reply in found])
        for turn, found in zip(chosen.tolist(), answers, strict=True)
    ]
    vectors = WordVectors.read(config.vectors, needed_words(pairs), config.seed) if config.vectors else None
    how = f"temperature {decoding.temperature:g}, top-p {decoding.top_p:g}, different replies, z from the prior"
    sections = []
    for protocol in ("legacy", "modern", "standard"):
        if protocol == "standard" and not importlib.util.find_spec("sacrebleu"):
            sections.append(Section("Replies, standard protocol", [], ["not measured. Run: pip install 'vrae[eval]'"]))
            continue
        scores = score_replies(pairs, protocol, decoding=how, vectors=vectors)
        found = figures(scores, bleu_recall="0 to 1", bleu_precision="0 to 1", bleu_f1="0 to 1", words_per_reply="words")
        for one in (scores.distinct_1, scores.distinct_2):
            found += [Figure(f"distinct_{one.n}_{kind}", getattr(one, kind), "share") for kind in ("intra", "inter", "corpus")]
        if scores.embedding:
            found += figures(scores.embedding, average="cosine", extrema="cosine", greedy="cosine", greedy_end_mark="cosine")
        found = [dataclasses.replace(figure, key=f"{protocol}_{figure.key}") for figure in found]
        sections.append(Section(f"Replies, {protocol} protocol", found, [scores.statement]))
    return sections


def _draw(pipeline: Pipeline, windows: Windows, bound: Bound, config: EvaluateConfig, run: Path | None) -> None:
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    if run is not None and (run / "metrics.jsonl").is_file():
        plot_training(run, out / "training.png")
    if not pipeline.model.config.latent_size:
        return
    plot_rate_per_dimension(bound.rate_per_dimension, bound.active_dimensions, out / "rate_per_dimension.png")
    means, lengths, kinds = [], [], []
    with torch.inference_mode():
        for _, batch in windows.in_order(min(config.max_turns or 2000, 2000)):
            batch = batch.to(pipeline.model.device)
            means.append(pipeline.model.infer(batch).posterior.mean_BZ.cpu().numpy())
            lengths += batch.target_lengths_B.tolist()
            for turn_T in batch.turns_NT[batch.target_B].tolist():
                kinds.append("question" if pipeline.tokenizer.decode(turn_T).rstrip().endswith("?") else "statement")
    plot_latent_map(np.concatenate(means), {"length in tokens": lengths, "kind": kinds}, out / "latent_map.png")
