"""Up to the Hub and back, over HTTP, to a stand-in of it; and what strangers may have put there."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from hub import WRITER, Hub, Repository, running_hub
from huggingface_hub import constants

import vrae
from vrae.corpus.prepared import Corpus
from vrae.errors import ModelError, UserError
from vrae.generation.hub import download, upload
from vrae.generation.pipeline import Pipeline
from vrae.model.folder import to_files

# The library of the Hub, of its own library for requests.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAMES = {"config.json", "model.safetensors", "tokenizer.model", "manifest.json"}


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The Hub that its library asks in this test, as a user who may write, with an empty cache."""
    template = "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    server.repositories.clear()
    server.storage.clear()
    server.asked.clear()
    server.broken = 0
    return server


def responder(corpus: Corpus, seed: int = 0) -> Pipeline:
    info = {"step": 3, "corpus": {"cleaning": {}, "source": "chitchat", "licence": "MIT", "fingerprint": "f" * 64}}
    return Pipeline(tiny_model(seed, context_turns=1, vocab_size=400).float(), corpus.tokenizer, info)


@pytest.fixture
def pipeline(corpus: Corpus) -> Pipeline:
    return responder(corpus)


def replies(pipeline: Pipeline) -> list[Any]:
    return pipeline.respond(["hello", "how are you"][:1], n=3, seed=1)


def put(hub: Hub, files: dict[str, bytes], name: str = "owner/name") -> str:
    """A commit of files as a stranger would make it."""
    return hub.repositories.setdefault(name, Repository()).commit(files)


class TestThereAndBack:
    def test_a_model_comes_back_by_name_with_card_and_checksums(self, hub: Hub, pipeline: Pipeline, tmp_path: Path) -> None:
        address = pipeline.push_to_hub("owner/name")
        repository = hub.repositories["owner/name"]
        files = repository.commits[repository.refs["main"]]
        assert address == f"{hub.url}/owner/name/commit/{repository.refs['main']}"
        assert set(files) == {*NAMES, "README.md", ".gitattributes"}
        assert b'library_name: "vrae"' in files["README.md"]
        assert set(json.loads(files["manifest.json"])["files"]) == NAMES - {"manifest.json"}
        for load in (vrae.load, Pipeline.from_pretrained):
            found = load("owner/name")
            assert replies(found) == replies(pipeline)
            assert found.info == {"format": 1, "model": found.info["model"], **pipeline.info}

    def test_nothing_is_fetched_but_what_a_model_needs(self, hub: Hub, pipeline: Pipeline, tmp_path: Path) -> None:
        pipeline.push_to_hub("owner/name")
        put(hub, {"training_args.bin": pickle.dumps("boom"), "model.onnx": b"x", "modeling.py": b"raise SystemExit"})
        folder = download("owner/name", cache_dir=tmp_path / "here")
        assert {path.name for path in folder.iterdir()} == NAMES
        fetched = {asked.rpartition("/")[2] for asked in hub.asked if "/resolve/" in asked}
        assert fetched == NAMES

    def test_a_revision_is_what_it_was(self, hub: Hub, corpus: Corpus, pipeline: Pipeline) -> None:
        first = pipeline.push_to_hub("owner/name").rpartition("/")[2]
        other = responder(corpus, seed=1)
        other.push_to_hub("owner/name")
        other.push_to_hub("owner/name", revision="other-branch")
        assert replies(other) != replies(pipeline)
        for name, revision, expected in (
            ("owner/name", "", other),
            ("owner/name", first, pipeline),
            ("owner/name", "other-branch", other),
        ):
            assert replies(Pipeline.from_pretrained(name, revision=revision)) == replies(expected)
        assert replies(vrae.load(f"owner/name@{first}")) == replies(pipeline)

    def test_a_pull_request_changes_no_branch(self, hub: Hub, corpus: Corpus, pipeline: Pipeline) -> None:
        pipeline.push_to_hub("owner/name")
        address = responder(corpus, seed=1).push_to_hub("owner/name", create_pr=True)
        assert address == f"{hub.url}/owner/name/discussions/1"
        assert replies(vrae.load("owner/name")) == replies(pipeline)
        assert replies(vrae.load("owner/name@refs/pr/1")) == replies(responder(corpus, seed=1))

    @pytest.mark.parametrize("private", [None, True, False])
    def test_a_repository_is_made_as_private_as_asked_for(self, hub: Hub, pipeline: Pipeline, private: bool | None) -> None:
        pipeline.push_to_hub("owner/name", private=private)
        assert hub.repositories["owner/name"].private is bool(private)

    def test_what_was_fetched_is_there_without_the_hub(
        self, hub: Hub, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pipeline.push_to_hub("owner/name")
        vrae.load("owner/name")
        hub.asked.clear()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert replies(vrae.load("owner/name")) == replies(pipeline)
        assert not hub.asked

    def test_half_reaches_the_hub(self, hub: Hub, pipeline: Pipeline) -> None:
        pipeline.push_to_hub("owner/small", half=True)
        read = dict(vrae.load("owner/small").model.named_parameters())
        assert all(torch.equal(read[name], weight.half().float()) for name, weight in pipeline.model.named_parameters())

    def test_commands_do_it_too(self, hub: Hub, pipeline: Pipeline, tmp_path: Path) -> None:
        """In processes of their own, which learn of the Hub by the environment alone."""
        pipeline.save_pretrained(tmp_path / "model")
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_TOKEN": WRITER, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

        def run(*arguments: str) -> str:
            command = [sys.executable, "-m", "vrae", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        pushed = json.loads(run("push", "owner/name", "--model", str(tmp_path / "model"), "--private", "--json"))
        assert pushed["id"] == "owner/name"
        assert pushed["url"].endswith(hub.repositories["owner/name"].refs["main"])
        assert hub.repositories["owner/name"].private
        answered = json.loads(run("respond", "hello", "-n", "3", "--seed", "1", "--json", "--model", "owner/name"))
        assert [reply["text"] for reply in answered["replies"]] == [reply.text for reply in replies(pipeline)]


class TestSavedInAFolder:
    def test_it_is_read_again_with_what_else_was_there(self, pipeline: Pipeline, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        for _ in range(2):  # a second time too
            pipeline.save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {*NAMES, "README.md", "notes.txt"}
        assert replies(Pipeline.from_pretrained(tmp_path)) == replies(pipeline)

    def test_half_is_half_the_size_and_each_weight_the_nearest_of_16_bits(self, pipeline: Pipeline, tmp_path: Path) -> None:
        for half in (False, True):
            pipeline.save_pretrained(tmp_path / str(half), half=half)
        sizes = [(tmp_path / str(half) / "model.safetensors").stat().st_size for half in (True, False)]
        assert 0.45 < sizes[0] / sizes[1] < 0.6
        read = dict(Pipeline.from_pretrained(tmp_path / "True").model.named_parameters())
        for name, weight in pipeline.model.named_parameters():
            assert torch.equal(read[name], weight.half().float()), name

    def test_the_card_may_be_edited_and_the_weights_may_not(self, pipeline: Pipeline, tmp_path: Path) -> None:
        pipeline.save_pretrained(tmp_path)
        (tmp_path / "README.md").write_text("my own")
        Pipeline.from_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"README.md: not vrae's, and would be replaced\. Choose another folder"):
            pipeline.save_pretrained(tmp_path)
        assert (tmp_path / "README.md").read_text() == "my own"
        content = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ModelError, match=r"damaged \(model.safetensors has another sha256"):
            Pipeline.from_pretrained(tmp_path)

    def test_a_folder_here_has_no_revision(self, pipeline: Pipeline, tmp_path: Path) -> None:
        pipeline.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"a folder here has no revision \(v1\)\. Leave it out"):
            Pipeline.from_pretrained(tmp_path, revision="v1")

    def test_where_nothing_can_be_written_is_one_line(self, pipeline: Pipeline, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot write: "):
            pipeline.save_pretrained(tmp_path / "file" / "model")


class TestWhatStrangersPutThere:
    @pytest.fixture
    def files(self, pipeline: Pipeline, tmp_path: Path) -> dict[str, bytes]:
        pipeline.save_pretrained(tmp_path / "good")
        return {name: (tmp_path / "good" / name).read_bytes() for name in NAMES}

    def test_a_pickle_is_no_model(self, hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
        class Payload:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "ran",)

        evil = pickle.dumps(Payload())
        kept = {name: files[name] for name in ("config.json", "tokenizer.model")}
        put(hub, {**kept, "pytorch_model.bin": evil, "model.pt": evil, "model.safetensors.index.json": b"{}"})
        with pytest.raises(ModelError, match=r"it lacks model.safetensors\. Weights are read from .* never from a pickle"):
            vrae.load("owner/name")
        put(hub, {"model.safetensors": evil})
        with pytest.raises(ModelError, match="not a safetensors file"):
            vrae.load("owner/name")
        assert not (tmp_path / "ran").exists()
        assert not any("pytorch_model.bin" in asked for asked in hub.asked)

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            ({"auto_map": {"AutoModel": "modeling.Evil"}}, r"config.json: unknown keys auto_map\. Known: format, model"),
            ({"model": {"vocab_size": 400, "hiddn_size": 8}}, r"unknown settings hiddn_size"),
            ({"format": 2}, "model format 2, this vrae reads 1"),
            ({"model": {"vocab_size": 400, "hidden_size": 60_000}}, "holds .* numbers, the model of config.json has more than"),
        ],
    )
    def test_a_config_with_more_in_it_is_refused(
        self, hub: Hub, files: dict[str, bytes], edit: dict[str, Any], message: str
    ) -> None:
        config = {**json.loads(files["config.json"]), **edit}
        unlisted = {name: files[name] for name in NAMES - {"manifest.json"}}
        put(hub, {**unlisted, "config.json": json.dumps(config).encode()})
        with pytest.raises(ModelError, match=message):
            vrae.load("owner/name")

    def test_weights_that_are_not_those_of_the_manifest_are_refused(
        self, hub: Hub, corpus: Corpus, files: dict[str, bytes]
    ) -> None:
        other = to_files(responder(corpus, seed=1).model, corpus.tokenizer, {})["model.safetensors"]
        put(hub, {**files, "model.safetensors": other})
        with pytest.raises(ModelError, match=r"damaged \(model.safetensors has another sha256 than the manifest says\)"):
            vrae.load("owner/name")

    def test_names_that_lead_out_of_the_folder_are_not_fetched(
        self, hub: Hub, files: dict[str, bytes], pipeline: Pipeline, tmp_path: Path
    ) -> None:
        outside = ("../../../../evil", "/etc/evil", "..\\evil", "sub/config.json", "../model.safetensors")
        put(hub, {**files, **dict.fromkeys(outside, b"evil")})
        before = {path for path in tmp_path.parent.rglob("*") if "cache" not in path.parts}
        assert replies(vrae.load("owner/name")) == replies(pipeline)
        assert {path for path in tmp_path.parent.rglob("*") if "cache" not in path.parts} == before
        assert not any(path.name in ("evil", "sub") for path in tmp_path.rglob("*"))

    @pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"format": 1}', b"[" * 100_000])
    def test_a_config_that_is_none_is_one_line(self, hub: Hub, files: dict[str, bytes], content: bytes) -> None:
        put(hub, {**{name: files[name] for name in NAMES - {"manifest.json"}}, "config.json": content})
        with pytest.raises(ModelError, match=r"config.json: ") as caught:
            vrae.load("owner/name")
        assert "\n" not in str(caught.value)


class TestErrors:
    """One line each, with the remedy."""

    @pytest.mark.parametrize(
        ("token", "message"),
        [
            (
                None,
                r"none on the Hub that you may read \(http.*/owner/name\): check the name; if it is private, log in with `hf",
            ),
            (WRITER, r"none on the Hub that you may read .*: check the name"),
        ],
    )
    def test_no_such_repository(self, hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None, message: str) -> None:
        monkeypatch.setenv("HF_TOKEN", token or "")
        one_line(message, "owner/name")

    def test_no_such_revision(self, hub: Hub, pipeline: Pipeline) -> None:
        pipeline.push_to_hub("owner/name")
        one_line(r"owner/name@v9: .* on the Hub it has no such revision: http.*/owner/name/tree/main", "owner/name@v9")

    def test_gated(self, hub: Hub, pipeline: Pipeline) -> None:
        pipeline.push_to_hub("owner/name")
        hub.repositories["owner/name"].gated = True
        one_line(r"on the Hub it is gated: ask for access on http.*/owner/name, then log in", "owner/name")

    def test_offline(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        one_line("it is not in the cache, and HF_HUB_OFFLINE keeps from asking the Hub: unset it", "owner/name")
        assert not hub.asked

    def test_nobody_there(self, hub: Hub, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        one_line(r"the Hub cannot be reached \(.*\): check the network, and HF_ENDPOINT \(http://127.0.0.1:9\)", "owner/name")
        with pytest.raises(UserError, match=r"not uploaded: the Hub cannot be reached .*: check the network"):
            pipeline.push_to_hub("owner/name")

    def test_out_of_order(self, hub: Hub, pipeline: Pipeline) -> None:
        hub.broken = 500
        one_line(r"the Hub (fails|cannot be reached) \(.*\): ", "owner/name")
        with pytest.raises(UserError, match=r"owner/name: not uploaded: the Hub fails \(.*500.*\): try again later"):
            pipeline.push_to_hub("owner/name")

    @pytest.mark.parametrize(
        ("token", "message"),
        [
            ("", r"owner/name: not uploaded: the Hub does not know you: log in with `hf auth login`, or set HF_TOKEN"),
            ("hf_reader", r"you may not write to http.*/owner/name: use a token that may write, of owner or a member"),
        ],
    )
    def test_no_right_to_write(
        self, hub: Hub, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, token: str, message: str
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(UserError, match=message) as caught:
            pipeline.push_to_hub("owner/name")
        assert "\n" not in str(caught.value)
        assert not hub.repositories

    @pytest.mark.parametrize("name", ["", "name", "a/b/c", "../x", "a/b\n", "https://huggingface.co/a/b", "a/" + "b" * 100])
    def test_a_name_that_is_none_is_not_asked_for(self, hub: Hub, pipeline: Pipeline, name: str) -> None:
        with pytest.raises(UserError, match=r"the id of a repository must be owner/name"):
            pipeline.push_to_hub(name)
        with pytest.raises(ModelError, match="on the Hub a model is owner/name"):
            download(name)
        with pytest.raises(UserError, match=r"--revision \.\./x: must be a branch, tag or commit"):
            upload("owner/name", {}, revision="../x")
        assert not hub.asked


def one_line(message: str, name: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        vrae.load(name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--model {name.partition('@')[0]}")
