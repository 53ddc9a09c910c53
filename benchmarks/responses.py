"""Replies of a model with a latent against the same architecture without one: variety, nearness to the true reply, dullness.

    python benchmarks/responses.py --model runs/chitchat-vhred --baseline runs/chitchat-hred --data corpora/chitchat \
        --background runs/chitchat-rnnlm --out runs/responses

Contexts: the test turns of 2 to 32 tokens (end mark not counted) that have at least one turn before them in their dialogue; of
these, `--contexts` at even spacing. The turn itself is the true reply, and as many turns before it as the model reads are the
context. Every system answers the same contexts with `--replies` replies each.

Two rules. `raw`: the texts as they are drawn, duplicates and empty ones included. `product`: what `Pipeline.respond` gives,
where near-duplicates and empty texts are drawn again, six times at most, and where that does not help there are fewer. Systems
are compared under one rule at a time. In both, the first reply is the one of the highest log p(reply | z, context).

Ranking: `--replies * --candidates` different replies of the model with a latent to each context, ordered by each score in
turn, of which the first `--replies` are kept.

Writes results.json, report.md, and raw.png and product.png to `--out`. 200 contexts take about 11 minutes of one CPU core with
OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import vrae
from vrae import Corpus, Pipeline
from vrae.apps.picture import BLUE, INK, ORANGE, SKY, VERMILION, picture
from vrae.config import BatchConfig, DecodingConfig, ResponseConfig
from vrae.corpus.batches import Windows
from vrae.evaluation.dialogue import Replies
from vrae.evaluation.replies import Estimate, Point, ReplyFigures, at_equal_diversity, estimate, measure_replies, paired
from vrae.generation.responses import Reply, draw_texts
from vrae.generation.text_model import digest

TEMPERATURES = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
FEW = (0.0, 0.5, 0.7, 1.0)  # of what is not the main comparison
LEAST_TOKENS, MOST_TOKENS = 2, 32  # of a true reply; no reply is longer either
BEAMS = 10
WEIGHTS = (0.25, 0.5, 0.75, 0.9, 1.0)  # of mmi; 0 is importance_weighted
DIVERSITY: dict[str, Callable[[ReplyFigures], np.ndarray]] = {
    "1 - self-BLEU-2": lambda figures: 1 - figures.self_bleu_N,
    "distinct-2": lambda figures: figures.distinct_2_N,
}
SIMILARITY: dict[str, Callable[[ReplyFigures], np.ndarray]] = {
    "oracle BLEU": lambda figures: figures.oracle_bleu_N,
    "oracle chrF": lambda figures: figures.oracle_chrf_N,
    "mean BLEU": lambda figures: figures.mean_bleu_N,
    "mean chrF": lambda figures: figures.mean_chrf_N,
}
SHOWN = {  # heading: figure, factor, decimals
    "distinct-1": ("distinct_1", 1, 3),
    "distinct-2": ("distinct_2", 1, 3),
    "self-BLEU-2": ("self_bleu", 1, 3),
    "ten most frequent": ("frequent", 1, 3),
    "of first replies": ("frequent_first", 1, 3),
    "words": ("words", 1, 2),
    "oracle BLEU": ("oracle_bleu", 100, 2),
    "mean BLEU": ("mean_bleu", 100, 2),
    "first BLEU": ("first_bleu", 100, 2),
    "oracle chrF": ("oracle_chrf", 100, 2),
    "mean chrF": ("mean_chrf", 100, 2),
}


@dataclass(frozen=True)
class System:
    """One way of drawing replies: a point of a curve."""

    curve: str
    model: Pipeline
    decoding: DecodingConfig
    latents: str
    rule: str

    @property
    def label(self) -> str:
        """Where on the curve it is."""
        return (
            f"T {self.decoding.temperature:g}"
            if not self.decoding.beams
            else f"length penalty {self.decoding.length_penalty:g}"
        )


Context = tuple[list[str], str]  # turns, true reply
Measured = list[tuple[System, ReplyFigures]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run with a latent and a context")
    parser.add_argument("--baseline", required=True, help="a run with a context and without a latent")
    parser.add_argument("--data", required=True)
    parser.add_argument("--background", help="a run without latent and context, as a second background of mmi")
    parser.add_argument("--contexts", type=int, default=200)
    parser.add_argument("--replies", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=3, help="of the ranking, for each reply")
    parser.add_argument("--rank_samples", type=int, default=10, help="of the ranking")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    model, baseline = vrae.load(options.model), vrae.load(options.baseline)
    for path, pipeline, latent in ((options.model, model, True), (options.baseline, baseline, False)):
        config = pipeline.model.config
        if not config.context_turns or bool(config.latent_size) is not latent:
            parser.error(f"{path}: has latent_size {config.latent_size} and context_turns {config.context_turns}")
    contexts = choose_contexts(Corpus(options.data), model.model.config.context_turns, options.contexts)
    measured: Measured = []
    for system in systems(model, baseline):
        start = time.process_time()
        replies = draw(system, contexts, options.replies, options.seed)
        drawn = time.process_time() - start
        measured.append((system, measure_replies([Replies([c[1]], texts) for c, texts in zip(contexts, replies, strict=True)])))
        log(f"{system.rule}, {system.curve}, {system.label}: drawn in {drawn:.1f} s", start)
    start = time.process_time()
    backgrounds = {"empty context": None, **({"language model": vrae.load(options.background)} if options.background else {})}
    ranked = rank(model, backgrounds, contexts, options)
    log("ranking", start)

    compared = [row for rule in ("raw", "product") for row in compare([one for one in measured if one[0].rule == rule])]
    results = {
        "settings": {**vars(options), "out": str(options.out)},
        "bleu": measured[0][1].bleu_signature,
        "chrf": measured[0][1].chrf_signature,
        "systems": [
            {"rule": system.rule, "curve": system.curve, "at": system.label, **as_dict(figures)} for system, figures in measured
        ],
        "compared": compared,
        "ranked": [{"rank": name, **as_dict(figures)} for name, figures in ranked.items()],
    }
    (options.out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (options.out / "report.md").write_text(report(results, ranked), encoding="utf-8")
    for rule in ("raw", "product"):
        draw_curves([one for one in measured if one[0].rule == rule], options.out / f"{rule}.png")


def log(what: str, start: float) -> None:
    print(f"{what}, {time.process_time() - start:.1f} s of CPU in all", file=sys.stderr, flush=True)


def choose_contexts(corpus: Corpus, context_turns: int, count: int, split: str = "test") -> list[Context]:
    """Turns before a true reply, and the reply, by the rule above."""
    turns, decode = corpus[split], corpus.tokenizer.decode
    windows = Windows(turns, BatchConfig(max_turn_tokens=MOST_TOKENS), context_turns)
    fit = windows.target_N[(windows.target_N > windows.start_N) & (windows.cost_N > LEAST_TOKENS)]
    start = dict(zip(windows.target_N.tolist(), windows.start_N.tolist(), strict=True))
    chosen = fit[np.linspace(0, len(fit) - 1, count).astype(np.int64)].tolist()
    log(f"{count} of {len(fit):,} contexts", time.process_time())
    return [
        ([decode(turns.turn(i)) for i in range(max(start[turn], turn - context_turns), turn)], decode(turns.turn(turn)))
        for turn in chosen
    ]


def systems(model: Pipeline, baseline: Pipeline) -> Iterable[System]:
    """All that are drawn: with top-p 0.9 as the program has it, and from the whole distribution."""
    nucleus = DecodingConfig(top_p=0.9, max_tokens=MOST_TOKENS)
    for T in TEMPERATURES:
        at_T, latents = replace(nucleus, temperature=T), ("independent", "stratified", "spread")[: 3 if T in FEW else 2]
        for how in latents:
            yield System(f"latent, {how}", model, at_T, how, "raw")
        yield System("no latent", baseline, at_T, "independent", "raw")
    for T in FEW:
        at_T, whole = replace(nucleus, temperature=T), replace(nucleus, temperature=T, top_p=1.0)
        for name, pipeline, how in (("latent, stratified", model, "stratified"), ("no latent", baseline, "independent")):
            yield System(name, pipeline, at_T, how, "product")
            if T:
                yield System(f"{name}, top-p 1", pipeline, whole, how, "raw")
    for rule, penalty in (("raw", 0.0), ("raw", 1.0), ("product", 0.0)):
        beam = replace(nucleus, beams=BEAMS, length_penalty=penalty)
        yield System(f"no latent, beam {BEAMS}", baseline, beam, "independent", rule)


def draw(system: System, contexts: Sequence[Context], n: int, seed: int) -> list[list[str]]:
    """The replies to each context, the most probable first."""
    turns, model = [context for context, _ in contexts], system.model
    if system.rule == "product":
        responses = ResponseConfig(latents=system.latents)  # type: ignore[arg-type]
        found = model.respond_many(turns, n, seed=seed, decoding=system.decoding, responses=responses)
        return [[reply.text for reply in replies] for replies in found]
    windows = model.windows([""] * len(turns), turns)
    prior, context_BC = model.condition(windows)
    keys = [[seed, 0, digest(window)] for window in windows]
    drawn = draw_texts(model, prior, context_BC, n, keys, system.decoding, system.latents)
    ordered = [sorted((decoded for decoded, _ in texts), key=lambda decoded: -decoded.log_prob) for texts in drawn]
    return [[model.tokenizer.decode(decoded.ids) for decoded in texts] for texts in ordered]


def rank(
    model: Pipeline, backgrounds: dict[str, Pipeline | None], contexts: Sequence[Context], options: argparse.Namespace
) -> dict[str, ReplyFigures]:
    """The same candidates in each order, of which the first are kept."""
    wanted = options.replies * options.candidates
    turns, decoding = [context for context, _ in contexts], DecodingConfig(max_tokens=MOST_TOKENS)

    def replies(responses: ResponseConfig, background: Pipeline | None = None) -> list[list[Reply]]:
        responses = replace(responses, rank_samples=options.rank_samples)
        return model.respond_many(
            turns, wanted, seed=options.seed, decoding=decoding, responses=responses, background=background
        )

    def figures(scored: Sequence[Sequence[tuple[float, str]]]) -> ReplyFigures:
        kept = [[text for _, text in sorted(some, key=lambda pair: -pair[0])[: options.replies]] for some in scored]
        return measure_replies([Replies([context[1]], texts) for context, texts in zip(contexts, kept, strict=True)])

    weighted = replies(ResponseConfig(rank="importance_weighted"))
    found = {
        "likelihood": figures([[(reply.log_prob, reply.text) for reply in some] for some in weighted]),
        "importance_weighted": figures([[(reply.score, reply.text) for reply in some] for some in weighted]),
    }
    evidence = [{reply.text: reply.score for reply in some} for some in weighted]
    for name, background in backgrounds.items():
        # With weight 1 the score is log p(y | c) - log p(y), and log p(y | c) is known: so all weights are.
        full = replies(ResponseConfig(rank="mmi", mmi_weight=1.0), background)
        for weight in WEIGHTS:
            scored = [
                [(known[r.text] - weight * (known[r.text] - r.score), r.text) for r in some]
                for some, known in zip(full, evidence, strict=True)
            ]
            found[f"mmi {weight:g}, {name}"] = figures(scored)
    return found


def compare(measured: Measured) -> list[dict[str, Any]]:
    """Each system without a latent against each curve of the model with one, by each measure of variety.

    `nearer by` is the curve's similarity less the system's where the curve is as varied. Where the system is less or more
    varied than all of the curve, it is that of the curve's nearest end, and `more varied by` says how far away that is.
    """
    curves = dict.fromkeys(system.curve for system, _ in measured if system.curve.startswith("latent"))
    rows = []
    for (name, diversity), curve, (system, figures) in product(DIVERSITY.items(), curves, measured):
        if system.curve in curves:
            continue
        on = [other for place, other in measured if place.curve == curve]
        on.sort(key=lambda other: float(diversity(other).mean()))
        own = diversity(figures)
        below, above = own.mean() < diversity(on[0]).mean(), own.mean() > diversity(on[-1]).mean()
        nearer: dict[str, Estimate | None] = {}
        for measure, similarity in SIMILARITY.items():
            point = Point(own, similarity(figures))
            if below or above:
                nearer[measure] = paired(similarity(on[0 if below else -1]), point.similarity_N)
            else:
                nearer[measure] = at_equal_diversity([Point(diversity(o), similarity(o)) for o in on], point)
        apart = paired(diversity(on[0 if below else -1]), own) if below or above else Estimate(0.0, None)
        place = {"rule": system.rule, "curve": curve, "against": system.curve, "at": system.label, "variety": name}
        rows.append({**place, "more varied by": apart, "nearer by": nearer})
    return rows


def verdict(apart: Estimate, nearer: Estimate) -> str:
    """Whether the curve is nearer to the true reply where it is as varied, by two standard errors."""
    if apart.value < 0:
        return "not as varied"
    near = "no difference" if abs(nearer.value) <= 2 * (nearer.error or 0.0) else "better" if nearer.value > 0 else "worse"
    return f"more varied, {near}" if apart.value > 0 else near


def as_dict(figures: ReplyFigures) -> dict[str, Any]:
    return {
        **{name: found._asdict() for name, found in figures.estimates.items()},
        "corpus_distinct_1": figures.corpus_distinct_1,
        "corpus_distinct_2": figures.corpus_distinct_2,
        "corpus_self_bleu": figures.corpus_self_bleu.scores,
        "most_frequent": figures.most_frequent,
        "most_frequent_first": figures.most_frequent_first,
    }


def report(results: dict[str, Any], ranked: dict[str, ReplyFigures]) -> str:
    """All of it as Markdown tables."""
    lines = [
        "In brackets: standard errors over contexts, of differences over the same contexts (paired). BLEU and chrF: percent.",
        f"BLEU: {results['bleu']}. chrF: {results['chrf']}.",
    ]
    corpus = ("corpus distinct-1", "corpus distinct-2", "corpus self-BLEU-2")
    for rule in ("raw", "product"):
        lines += ["", f"## Replies, {rule}", "", *header("system", "at", "replies", *SHOWN, *corpus)]
        for found in (row for row in results["systems"] if row["rule"] == rule):
            lines.append(row_of(found["curve"], found["at"], f"{found['replies']['value']:.1f}", *cells(found)))
    for (name, _), rule in product(DIVERSITY.items(), ("raw", "product")):
        lines += ["", f"## The curve less the system at equal {name}, {rule}", ""]
        lines += header("curve", "against", "at", "more varied by", *SIMILARITY, "by oracle BLEU", "by oracle chrF")
        for row in results["compared"]:
            if (row["variety"], row["rule"]) == (name, rule):
                apart, nearer = row["more varied by"], row["nearer by"]
                so = (verdict(apart, nearer[measure]) for measure in ("oracle BLEU", "oracle chrF"))
                values = (shown(value, 100, 2) for value in nearer.values())
                lines.append(row_of(row["curve"], row["against"], row["at"], shown(apart, 1, 3), *values, *so))
    likely = ranked["likelihood"]
    changes = {
        "dull share, change": lambda figures: figures.frequent_first_N,
        **{f"{name}, change": SIMILARITY[name] for name in ("oracle BLEU", "oracle chrF")},
    }
    lines += ["", "## Ranking", "", *header("rank", *SHOWN, *corpus, "dull share over likelihood's", *changes)]
    for found in results["ranked"]:
        figures = ranked[found["rank"]]
        ratio = figures.frequent_first_N.mean() / likely.frequent_first_N.mean()
        changed = (shown(paired(of(figures), of(likely)), 100, 2) for of in changes.values())
        lines.append(row_of(found["rank"], *cells(found), f"{ratio:.2f}", *changed))
    return "\n".join(lines) + "\n"


def cells(found: dict[str, Any]) -> list[str]:
    means = [shown(Estimate(**found[name]), factor, decimals) for name, factor, decimals in SHOWN.values()]
    return [
        *means,
        f"{found['corpus_distinct_1']:.3f}",
        f"{found['corpus_distinct_2']:.3f}",
        f"{found['corpus_self_bleu'][1]:.3f}",
    ]


def shown(found: Estimate, factor: float, decimals: int) -> str:
    error = "" if found.error is None else f" ({factor * found.error:.{decimals}f})"
    return f"{factor * found.value:.{decimals}f}{error}"


def header(*names: str) -> list[str]:
    return [row_of(*names), row_of(*("---" for _ in names))]


def row_of(*values: str) -> str:
    return f"| {' | '.join(values)} |"


def draw_curves(measured: Measured, out: Path) -> None:
    """Similarity over variety, a line for each of the main ways of drawing; standard errors through the points, which stand for
    rising temperatures from left to right."""
    colours = {
        "latent, independent": SKY, "latent, stratified": BLUE, "no latent": VERMILION, "no latent, top-p 1": ORANGE,
        "no latent, beam 10": INK,
    }  # fmt: skip
    name, across = next(iter(DIVERSITY.items()))
    with picture(out, (14, 11)) as figure:
        for axes, (title, up) in zip(figure.subplots(2, 2).flat, SIMILARITY.items(), strict=True):
            for curve, colour in colours.items():
                on = [(system, figures) for system, figures in measured if system.curve == curve]
                x, y = [float(across(f).mean()) for _, f in on], [100 * float(up(f).mean()) for _, f in on]
                errors = [100 * (estimate(up(f)).error or 0.0) for _, f in on]
                line = {"ls": "", "marker": "D"} if "beam" in curve else {"ls": "-" if curve.startswith("latent") else "--"}
                axes.errorbar(x, y, errors, **{"marker": "o", **line}, color=colour, ms=5, elinewidth=0.6, label=curve)
                for (system, _), *place in list(zip(on, x, y, strict=True))[:: max(len(on) - 1, 1)]:  # the ends of the line
                    text = system.label if system.decoding.beams == 0 else ""
                    axes.annotate(text, place, (5, 5), textcoords="offset points", fontsize=9, color=colour)
            axes.set_title(f"{title} against the true reply, percent")
            axes.set_xlabel(f"{name} among the replies to a context")
        figure.axes[0].legend(loc="lower center", fontsize=10)


if __name__ == "__main__":
    main()
