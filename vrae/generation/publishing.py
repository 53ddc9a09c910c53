"""Publishing: a model made into a folder or a repository that others can load, with its card and checksums."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from vrae.config import shown
from vrae.errors import UserError
from vrae.files import MANIFEST, manifest, write_file
from vrae.generation.card import CARD, MARK, REPORT, model_card, publishable, read_report
from vrae.generation.hub import upload
from vrae.generation.text_model import TextModel
from vrae.model.folder import to_files


class Publishing(TextModel):
    """What a model can do for those who are to load it elsewhere."""

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        half: bool = False,
        report: str | Path | None = None,
        license: str = "",
        language: str = "",
    ) -> None:
        """Writes what belongs on the Hub into a folder: the model, its tokenizer, checksums, and a card (README.md).

        Args:
            folder: is made where it is not there. Files of these names are replaced, others stay.
            half: weights of 16 bits (float16), half the size. They are read as 32 bits again; measure what that costs.
            report: what `vrae evaluate --out` wrote about this model, for the card's figures.
            license: of the weights, by the Hub's identifier; empty: that of the corpus, where the Hub knows it.
            language: its code, `en`; empty: that of chitchat, else none.

        Raises:
            UserError: `folder` cannot be written, it has a README.md that is not vrae's, or the report is of another model.
        """
        folder = Path(folder)
        files = self._publication(shown(folder.resolve().name), report, license, language, half)
        with contextlib.suppress(OSError):
            if MARK not in (folder / CARD).read_text(encoding="utf-8", errors="replace"):
                raise UserError(f"{folder / CARD}: not vrae's, and would be replaced. Choose another folder, or move it away")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                write_file(folder / name, content)
        except OSError as error:
            raise UserError(f"{folder}: cannot write: {error.strerror or error}") from None

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str = "",
        commit_message: str = "Upload a model of vrae",
        token: str | None = None,
        create_pr: bool = False,
        half: bool = False,
        report: str | Path | None = None,
        license: str = "",
        language: str = "",
    ) -> str:
        """Puts what `save_pretrained` writes on the Hub, as one commit, and returns its address.

        Args:
            repo_id: `owner/name`; made where it is not there.
            private: who can see a repository that is made here; None: as its owner's settings say.
            revision: the branch, made where it is not there; empty: main.
            commit_message: one line.
            token: of a user who may write there; None: the one that is logged in.
            create_pr: propose it in a pull request instead.
            half, report, license, language: as in `save_pretrained`.

        Raises:
            UserError: the id is none, the report is of another model, or the Hub refuses or cannot be reached.
        """
        files = self._publication(repo_id, report, license, language, half)
        options = {"private": private, "revision": revision, "token": token, "create_pr": create_pr}
        return upload(repo_id, files, message=commit_message, **options)  # type: ignore[arg-type]

    def card(self, name: str = "", *, report: str | Path | None = None, license: str = "", language: str = "") -> str:
        """The model card as Markdown, see `save_pretrained`; `name` is `owner/name` on the Hub."""
        info, found = publishable(self.info), read_report(report, self.info) if report else None
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return model_card(info, self.model.config, parameters, name=name, report=found, license=license, language=language)

    def _publication(
        self, name: str, report: str | Path | None, license: str, language: str, half: bool = False
    ) -> dict[str, bytes]:
        """All files, in the order in which they are written: the manifest, which makes them a whole, comes last."""
        card = self.card(name, report=report, license=license, language=language).encode()
        files = {
            **to_files(self.model, self.tokenizer, publishable(self.info), torch.float16 if half else None),
            **({REPORT: read_report(report, self.info)} if report else {}),
        }
        return {**files, CARD: card, MANIFEST: manifest(files)}  # the card is its owner's to edit
