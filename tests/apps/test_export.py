"""Exported graphs against the model they were cut from: in torch, under onnxruntime, and as the example uses them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import random_windows, tiny_model

from vrae.apps import export
from vrae.apps.cli import main
from vrae.apps.export import export_onnx
from vrae.apps.graphs import Array, Graph, graphs
from vrae.config import GREEDY, CleaningConfig, ModelConfig
from vrae.corpus.batches import Batch, collate
from vrae.corpus.prepared import Corpus
from vrae.corpus.tokenizer import EOS
from vrae.errors import ModelError, UserError
from vrae.files import check_folder
from vrae.generation.pipeline import Pipeline
from vrae.model.mixture import GaussianMixture
from vrae.model.vrae import VRAE

ROOT = Path(__file__).parents[2]
ALONE: dict[str, Any] = dict(encoder_layers=2, bidirectional=True, tied_output=True)
REPLIES: dict[str, Any] = dict(
    context_turns=3, bidirectional=False, tied_output=False, decoder_layers=2, skip_latent=True, speakers=True
)
MIXED: dict[str, Any] = dict(prior="mixture", prior_components=3)
MODELS: dict[str, dict[str, Any]] = {
    "alone": ALONE,
    "alone, a mixture": MIXED,
    "replies, a mixture": dict(context_turns=3, **MIXED),
    "alone, one way, skipping": dict(bidirectional=False, skip_latent=True, decoder_layers=2),
    "alone, normalised": dict(batch_norm_scale=0.5, tied_output=False),
    "replies": REPLIES,
    "replies, both ways": dict(context_turns=3, encoder_layers=2),
    "replies, one turn": dict(context_turns=1, speakers=True, encoder_layers=2, bidirectional=False),
    "replies, standard prior": dict(context_turns=3, prior="standard", skip_latent=True),
    "replies without a latent": dict(context_turns=3, latent_size=0, decoder_layers=2),
}


def outputs(model: VRAE, batch: Batch, z_BZ: torch.Tensor) -> dict[str, np.ndarray]:
    """What the model itself says of a batch, one entry for each output that a graph may have."""
    found = {}
    with torch.inference_mode():
        prior, context_BC = model.condition(batch)
        inferred = model.infer(batch)
        state = model.decoder.start(z_BZ, context_BC)
        logits_BV, after = model.decoder.step(batch.inputs_BT[:, 0], state)
        again_BV, _ = model.decoder.step(logits_BV.argmax(-1), after)
    found["posterior.mean"], found["posterior.log_var"] = inferred.posterior.mean_BZ, inferred.posterior.log_var_BZ
    if isinstance(prior, GaussianMixture):
        parts = dict(zip(("log_weight", "mean", "log_var"), prior, strict=True))
        found |= {f"context.{name}": part for name, part in parts.items()}
        found |= {f"prior.{name}": part[:1] for name, part in parts.items()}
    else:
        found["context.mean"], found["context.log_var"] = prior.mean_BZ, prior.log_var_BZ
    found |= {"context.context": context_BC, "start.condition": state.condition_BE, "start.state": state.state_LBH}
    found |= {"start.skip": state.skip_BE, "step.logits": logits_BV, "step.next_state": after.state_LBH, "again": again_BV}
    return {name: value.detach().numpy() for name, value in found.items()}


def compare(model: VRAE, run: Any, size: int, tolerance: float, seed: int = 0) -> None:
    """`run(name, arrays)` gives a graph's outputs. The batch has turns of 0 to 7 tokens, and contexts of 0 to K turns."""
    K, draw = model.config.context_turns, np.random.default_rng(seed)
    batch = collate(random_windows(size, K, seed=seed), K)
    z_BZ = torch.from_numpy(draw.standard_normal((size, model.config.latent_size))).to(model.decoder.out.bias)
    wanted = outputs(model, batch, z_BZ)
    ids_NT, lengths_N = batch.turns_NT.numpy().copy(), batch.turn_lengths_N.numpy()
    ids_NT = np.pad(ids_NT, ((0, 0), (0, 2)))
    padding_NT = np.arange(ids_NT.shape[1]) >= lengths_N[:, None]
    ids_NT[padding_NT] = draw.integers(0, 23, padding_NT.sum())  # what stands there must not matter
    turns_BK = batch.context_BK.numpy()
    known = dict(z=z_BZ.numpy())
    checked = set()

    def check(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = run(name, arrays)
        for key, value in found.items():
            np.testing.assert_allclose(value, wanted[f"{name}.{key}"], rtol=tolerance, atol=tolerance, err_msg=f"{name}.{key}")
            checked.add(f"{name}.{key}")
        return found

    if K:
        dialogues = {"ids": ids_NT[turns_BK], "lengths": lengths_N[turns_BK], "count": batch.context_lengths_B.numpy()}
        known |= check("context", {**dialogues, "same_speaker": batch.same_speaker_BK.numpy()})
        assert {"context.context"} <= checked
        assert ("context.log_weight" in checked) == (model.config.prior == "mixture")
    elif model.config.prior == "mixture":
        check("prior", {})
        assert {"prior.log_weight", "prior.mean", "prior.log_var"} <= checked
    if model.config.latent_size:
        targets_B = batch.target_B.numpy()
        check("posterior", {"ids": ids_NT[targets_B], "lengths": lengths_N[targets_B], **known})
    state = check("start", known)
    after = check("step", {"ids": batch.inputs_BT[:, 0].numpy(), **state})
    chosen = wanted["step.logits"].argmax(-1)
    again = run("step", {"ids": chosen, **state, "state": after["next_state"]})["logits"]
    np.testing.assert_allclose(again, wanted["again"], rtol=tolerance, atol=tolerance)
    assert {"start.condition", "start.state", "step.logits", "step.next_state"} <= checked


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("name", MODELS)
def test_the_graphs_compute_what_the_model_computes(name: str, size: int) -> None:
    """In torch, in double precision: the same sums in another order."""
    model = tiny_model(**MODELS[name])
    cut = graphs(model)

    def run(graph: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            found = cut[graph].module(*(torch.from_numpy(arrays[key]) for key in cut[graph].inputs))
        return {key: value.numpy() for key, value in zip(cut[graph].outputs, found, strict=True)}

    for seed in range(3):
        compare(model, run, size, 1e-10, seed)


def pipeline(corpus: Corpus, **overrides: Any) -> Pipeline:
    """A model of random weights with the corpus' tokenizer, whose corpus was in lower case."""
    torch.manual_seed(0)
    sizes = dict(embedding_size=12, hidden_size=16, context_size=14, latent_size=6, dropout=0.0)
    model = VRAE(ModelConfig(vocab_size=len(corpus.tokenizer), **{**sizes, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
        model.decoder.out.bias[EOS] += 6  # so that some texts end
    cleaning = dataclasses.asdict(CleaningConfig(lowercase=True, restore_apostrophes=True))
    return Pipeline(model, corpus.tokenizer, {"corpus": {"cleaning": cleaning}, "run": {"batches": {"max_turn_tokens": 24}}})


@pytest.fixture(scope="module")
def exported(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Pipeline, Path]]:
    """Three models and their exports, which differ in all that a model can be."""
    folder, found = tmp_path_factory.mktemp("export"), {}
    for name, settings in (("alone", ALONE), ("replies", REPLIES), ("mixture", MIXED)):
        found[name] = pipeline(corpus, **settings), folder / name
        export_onnx(*found[name])
    return found


def sessions(folder: Path) -> dict[str, onnxruntime.InferenceSession]:
    return {path.stem: onnxruntime.InferenceSession(path) for path in folder.glob("*.onnx")}


def runs_in(folder: Path) -> Any:
    """A graph's outputs under onnxruntime."""
    found = sessions(folder)

    def run(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {value.name: arrays[value.name] for value in found[name].get_inputs()}
        names = [value.name for value in found[name].get_outputs()]
        return dict(zip(names, found[name].run(names, given), strict=True))

    return run


@pytest.mark.parametrize("name", ["alone", "replies", "mixture"])
def test_onnxruntime_computes_what_the_model_computes(name: str, exported: dict[str, tuple[Pipeline, Path]]) -> None:
    model, folder = exported[name]
    run = runs_in(folder)
    for seed, size in enumerate((1, 2, 7, 7)):
        compare(model.model, run, size, 1e-5, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_computes_what_every_model_computes(name: str, corpus: Corpus, tmp_path: Path) -> None:
    model = pipeline(corpus, **MODELS[name])
    export_onnx(model, tmp_path / "onnx")
    for seed, size in enumerate((1, 2, 7, 7)):
        compare(model.model, runs_in(tmp_path / "onnx"), size, 1e-5, seed)


def example(folder: Path, *arguments: str) -> list[str]:
    """What the example prints in a process that can import neither torch nor vrae."""
    program = (
        "import runpy, sys; sys.modules.update(torch=None, vrae=None); del sys.argv[0]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(folder / "example.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def draws(model: Pipeline, context: list[str], seed: int) -> list[str]:
    """What the model writes of five draws of its prior, with the random numbers of the example."""
    random = np.random.default_rng(seed)
    prior, context_1C = model.condition(model.windows([""], [context]))
    mean, log_var = prior.mean_BZ, prior.log_var_BZ
    if isinstance(prior, GaussianMixture):
        chosen = random.choice(3, 5, p=prior.log_weight_BM[0].exp().numpy())
        assert len(set(chosen)) > 1
        mean, log_var = prior.means_BMZ[0, chosen], prior.log_vars_BMZ[0, chosen]
    z_NZ = mean + (0.5 * log_var).exp() * torch.from_numpy(random.standard_normal((5, 6), np.float32))
    return [model.tokenizer.decode(text.ids) for text in model.decode(z_NZ, context_1C.expand(5, -1), None, GREEDY)]


@pytest.mark.parametrize(
    "dialogue", [["Hi!"], ["hello", "HI, how  are\tyou?", "i am fine", "what do you like to eat? naïve 😀"]]
)
def test_the_example_replies_as_the_model_does(dialogue: list[str], exported: dict[str, tuple[Pipeline, Path]]) -> None:
    """The second dialogue is longer than the model reads, and has what cleaning changes."""
    model, folder = exported["replies"]
    wanted = draws(model, dialogue, seed=1)
    assert example(folder, *dialogue) == list(dict.fromkeys(wanted))
    assert len(set(wanted)) > 1


@pytest.mark.parametrize("name", ["alone", "mixture"])
def test_the_example_writes_sentences_as_the_model_does(name: str, exported: dict[str, tuple[Pipeline, Path]]) -> None:
    model, folder = exported[name]
    wanted = draws(model, [], seed=1)
    assert example(folder) == wanted
    assert len(set(wanted)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["replies, a mixture", "replies without a latent"])
def test_the_example_replies_as_every_model_does(name: str, corpus: Corpus, tmp_path: Path) -> None:
    model = pipeline(corpus, **MODELS[name])
    export_onnx(model, tmp_path / "onnx")
    if model.model.config.latent_size:
        assert example(tmp_path / "onnx", "Hi!") == list(dict.fromkeys(draws(model, ["Hi!"], seed=1)))
    else:
        _, context_1C = model.condition(model.windows([""], [["Hi!"]]))
        (text,) = model.decode(torch.zeros(1, 0), context_1C, None, GREEDY)
        assert example(tmp_path / "onnx", "Hi!") == [model.tokenizer.decode(text.ids)]


def test_the_example_walks_and_reconstructs_as_the_model_does(exported: dict[str, tuple[Pipeline, Path]]) -> None:
    model, folder = exported["alone"]
    a, b = "Hello, how are you today?", "dont know, see you later"
    wanted = [step.text for step in model.interpolate(a, b, 7, method="lerp", decoding=GREEDY)]
    assert example(folder, a, b) == wanted
    assert [wanted[0], wanted[-1]] == [result.reconstruction for result in model.reconstruct([a, b], decoding=GREEDY)]
    assert len(set(wanted)) > 2


@pytest.mark.parametrize("name", ["alone", "replies", "mixture"])
def test_config_json_says_what_the_graphs_take_and_give(name: str, exported: dict[str, tuple[Pipeline, Path]]) -> None:
    model, folder = exported[name]
    info = json.loads((folder / "config.json").read_text())
    more = {"alone": set(), "replies": {"context"}, "mixture": {"prior"}}
    assert set(info["graphs"]) == {"posterior", "start", "step", *more[name]}
    assert check_folder(folder) == ""
    assert (folder / "tokenizer.model").read_bytes() == model.tokenizer.model
    assert (info["ids"], info["never_written"]) == ({"pad": 0, "unk": 1, "bos": 2, "eos": 3}, [0, 1, 2])
    assert (info["max_tokens"], info["max_turn_tokens"]) == (GREEDY.max_tokens, 24)
    types = {"tensor(int64)": "int64", "tensor(float)": "float32"}
    for graph, session in sessions(folder).items():
        for key, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            there = {value.name: {"dtype": types[value.type], "shape": value.shape} for value in values}
            assert there == info["graphs"][graph][key]


def test_the_graphs_stand_alone_and_tell_nothing_of_the_machine(exported: dict[str, tuple[Pipeline, Path]]) -> None:
    _, folder = exported["replies"]
    assert {path.suffix for path in folder.iterdir()} == {".onnx", ".json", ".py", ".model"}
    for path in folder.glob("*.onnx"):
        content = path.read_bytes()
        for word in (str(ROOT), str(Path.home()), "site-packages", "File "):
            assert word.encode() not in content


def test_a_graph_is_the_same_bytes_each_time(exported: dict[str, tuple[Pipeline, Path]]) -> None:
    model, folder = exported["replies"]
    assert export._onnx(graphs(model.model)["step"]) == (folder / "step.onnx").read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(flow_steps=2), "its posterior has a flow"),
        (dict(latent_size=0), "a language model"),
    ],
)
def test_what_cannot_be_exported_is_said(settings: dict[str, Any], message: str, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        export_onnx(pipeline(corpus, **settings), tmp_path / "onnx")
    assert not any(tmp_path.iterdir())


def test_a_model_too_large_for_a_file_is_refused(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_LARGEST", 1000)
    with pytest.raises(ModelError, match="an ONNX file holds at most 1,000"):
        export_onnx(pipeline(corpus), tmp_path / "onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'vrae\[export\]'"):
        export_onnx(pipeline(corpus), tmp_path / "onnx")
    assert not any(tmp_path.iterdir())


class FixesItsSize(torch.nn.Module):
    def forward(self, *arrays: torch.Tensor) -> tuple[torch.Tensor]:
        return (arrays[0].view(len(arrays[0]), -1) + 1,)


def test_sizes_that_the_exporter_fixed_are_noticed() -> None:
    z = {"z": Array("float32", ("batch", 6))}
    with pytest.raises(UserError, match=r"exports z with shape \(2, 6\), not \('batch', 6\)"):
        export._onnx(Graph(FixesItsSize(), z, z))


REPLY, SENTENCE = ((ROOT / f"vrae/apps/onnx_{name}.py").read_text(encoding="utf-8") for name in ("replies", "sentences"))


def test_the_docs_have_the_example_as_it_is() -> None:
    assert REPLY in (ROOT / "docs/export.md").read_text(encoding="utf-8")


def test_the_examples_are_short_and_read_and_write_in_the_same_words() -> None:
    first, last = "import json", "\n\n\ndef "
    common = REPLY[REPLY.index(first) : REPLY.index(f"{last}respond")]
    assert common == SENTENCE[SENTENCE.index(first) : SENTENCE.index(f"{last}sample")]
    for text in (REPLY, SENTENCE):
        code = text.partition('"""\n\n')[2]
        lines = [line.strip() for line in code.splitlines()]
        assert len([line for line in lines if line and not line.startswith(("#", '"""', "import ", "from "))]) <= 40


def test_only_an_export_is_replaced(
    exported: dict[str, tuple[Pipeline, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = exported["alone"]
    monkeypatch.setattr(export, "_onnx", lambda graph: b"a graph")
    with pytest.raises(UserError, match="exists already"):
        export_onnx(model, folder)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    for out in (mine, mine / "notes.txt"):
        with pytest.raises(UserError, match="exists already"):
            export_onnx(model, out, overwrite=True)
    assert (mine / "notes.txt").read_text() == "mine"
    (mine / "notes.txt").unlink()
    (mine / "step.onnx").touch()
    (mine / "example.py").touch()
    export_onnx(model, mine, overwrite=True)
    assert check_folder(mine) == ""
    with pytest.raises(UserError, match="cannot write"):
        export_onnx(model, folder / "step.onnx" / "below")


def test_the_command(
    exported: dict[str, tuple[Pipeline, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, folder = exported["replies"]
    monkeypatch.setattr(export, "_onnx", lambda graph: b"a graph")
    monkeypatch.setattr("vrae.generation.pipeline.load", lambda name: {"run": model}[name])
    assert main(["export", "run", "--format", "pt2", "--out", str(tmp_path / "onnx")]) == 2
    assert "--format must be onnx. Got 'pt2'" in capsys.readouterr().err
    assert main(["export", "run", "--format", "onnx", "--out", str(tmp_path / "onnx"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("out") == str(tmp_path / "onnx")
    assert printed == json.loads((folder / "config.json").read_text())
    assert main(["export", "run", "--out", str(tmp_path / "onnx")]) == 2
    assert main(["export", "run", "--out", str(tmp_path / "onnx"), "--overwrite"]) == 0
    captured = capsys.readouterr()
    assert "step       ids, condition, skip, state -> logits, next_state" in captured.out
    assert "example.py" in captured.out
