"""Models on the Hugging Face Hub: what is fetched of a repository, how one is filled, and one line for what goes wrong.

The library of the Hub does the work, and its environment variables hold: HF_TOKEN, HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT. Of a
repository nothing is fetched but the files by these names, whatever else is in it: no code and no pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vrae.config import shown
from vrae.corpus.sources import REVISION, is_hub_id, is_revision
from vrae.errors import ModelError, UserError
from vrae.files import MANIFEST
from vrae.model.folder import CONFIG, TOKENIZER, WEIGHTS

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def download(name: str, revision: str = "", *, token: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Fetches the model `owner/name`, at a branch, tag or commit, into the cache; returns its folder there.

    Raises:
        ModelError: there is no such repository or revision, it is not open to this user or holds no model, or the Hub cannot be
            reached and it was never fetched before.
    """
    from huggingface_hub import snapshot_download

    asked = f"--model {name}@{shown(revision)}".rstrip("@")
    if not is_hub_id(name) or (revision and not is_revision(revision)):
        raise ModelError(f"{shown(asked)}: no such folder here; on the Hub a model is owner/name, and its revision {REVISION}")
    patterns = [CONFIG, WEIGHTS, TOKENIZER, MANIFEST]
    try:
        found = snapshot_download(name, revision=revision or None, allow_patterns=patterns, token=token, cache_dir=cache_dir)
    except Exception as error:
        raise ModelError(f"{asked}: no such folder here, and {_problem(error, name, 'read')}") from None
    missing = [file for file in (CONFIG, WEIGHTS, TOKENIZER) if not (Path(found) / file).is_file()]
    if missing:
        raise ModelError(
            f"{asked}: this repository holds no model of vrae: it lacks {', '.join(missing)}. Weights are read from {WEIGHTS} "
            "alone, never from a pickle (.bin, .pt); its owner can publish them with `vrae push`"
        )
    return Path(found)


def upload(
    name: str,
    files: Mapping[str, bytes],
    *,
    private: bool | None = None,
    revision: str = "",
    message: str = "Upload a model of vrae",
    token: str | None = None,
    create_pr: bool = False,
) -> str:
    """Puts files into the repository `owner/name` as one commit, and makes the repository where there is none.

    Args:
        name: of the repository.
        files: contents by name; others that are there stay.
        private: who can see a repository that is made here; None: as its owner's settings say.
        revision: the branch, which is made where there is none; empty: main.
        message: of the commit.
        token: of a user who may write there; None: the one that is logged in.
        create_pr: propose the commit in a pull request.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        UserError: the name is none, or the Hub refuses or cannot be reached; with what to do.
    """
    if not is_hub_id(name):
        raise UserError(f"{shown(name)}: the id of a repository must be owner/name, of letters, digits and . _ -")
    if revision and not is_revision(revision):
        raise UserError(f"--revision {shown(revision)}: must be {REVISION}")
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    operations = [CommitOperationAdd(file, content) for file, content in files.items()]
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if revision and not revision.startswith("refs/"):
            api.create_branch(name, branch=revision, exist_ok=True)
        commit = api.create_commit(
            name, operations, commit_message=message, revision=revision or None, create_pr=create_pr or None
        )
    except Exception as error:
        raise UserError(f"{name}: not uploaded: {_problem(error, name, 'write')}") from None
    return str(commit.pr_url or commit.commit_url)


def _problem(error: Exception, name: str, access: str) -> str:
    """What went wrong between here and the Hub, and what to do."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    words = f"{type(error).__name__}: {shown(first_line, 150)}"
    page = f"{constants.ENDPOINT}/{name}"
    if isinstance(error, errors.GatedRepoError):
        return f"on the Hub it is gated: ask for access on {page}, then {_LOG_IN}"
    if access == "write" and (isinstance(error, errors.LocalTokenNotFoundError) or status == 401):
        return f"the Hub does not know you: {_LOG_IN}, with a token that may write"
    if access == "write" and status == 403:
        return f"you may not write to {page}: use a token that may write, of {name.partition('/')[0]} or a member"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"none on the Hub that you may read ({page}): check the name; if it is private, {_LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"on the Hub it has no such revision: {page}/tree/main shows its branches and tags"
    if constants.HF_HUB_OFFLINE:
        cached = "" if access == "write" else "it is not in the cache, and "
        return f"{cached}HF_HUB_OFFLINE keeps from asking the Hub: unset it"
    if status is None and (isinstance(error, OSError) or _is_network(error)):
        return f"the Hub cannot be reached ({words}): check the network, and HF_ENDPOINT ({constants.ENDPOINT})"
    return f"the Hub fails ({words}): try again later"


def _is_network(error: Exception) -> bool:
    """Whether a request failed on its way. The library of the Hub has changed the one it makes requests with, twice."""
    return any(kind.__module__.partition(".")[0] in ("httpx", "httpx2", "requests") for kind in type(error).__mro__)
