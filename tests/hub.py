"""A stand-in of the Hub: the part of its HTTP interface that the Hub's own library speaks when it uploads and downloads.

Repositories are in memory. It answers as the Hub does: an unknown repository is 401 to a stranger, files beyond a certain kind
go to large-file storage under their sha256, a commit names them, and what is resolved carries the commit and an ETag.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

WRITER = "hf_writer"
LARGE = (".safetensors", ".model", ".bin")


@dataclass
class Repository:
    """Files by name for every commit, and the commit of each branch and tag."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Adds files to what is there, as its owner would with git; returns the commit."""
        whole = {**self.commits.get(self.refs.get(branch, ""), {}), **files}
        text = json.dumps([len(self.commits), {name: hashlib.sha256(data).hexdigest() for name, data in whole.items()}])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = whole
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str:
        return revision if revision in self.commits else self.refs.get(revision, "")


class Hub(ThreadingHTTPServer):
    """`repositories` by id; `asked`, the method and path of each request; `broken`: what it answers to all, where it is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.storage: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.broken = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.body and "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = self.chunks()
        if self.server.broken:
            return self.error(self.server.broken, "", "out of order")
        parts = path.strip("/").split("/")
        if path.startswith("/storage/"):
            return self.storage(parts[1])
        if path == "/api/repos/create":
            return self.create()
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if parts[:2] == ["api", "models"]:
            return self.api("/".join(parts[2:4]), parts[4:])
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch()
        if len(parts) > 4 and parts[2] == "resolve":
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self.error(404, "", "no such page")

    def chunks(self) -> bytes:
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    # Writing

    def may_write(self) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token != WRITER:
            self.error(403 if token else 401, "", "Forbidden" if token else "Invalid username or password.")
        return token == WRITER

    def create(self) -> None:
        if self.may_write():
            asked = json.loads(self.body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.repositories:
                told = {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}
                return self.send(409, json.dumps(told).encode(), {"Content-Type": "application/json"})
            private = asked.get("visibility") == "private" or asked.get("private") is True
            self.server.repositories[name] = repository = Repository(private)
            repository.commit({".gitattributes": b"*.safetensors filter=lfs"})
            self.json({"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def batch(self) -> None:
        if self.may_write():
            objects = []
            for one in json.loads(self.body)["objects"]:
                href = f"{self.server.url}/storage/{one['oid']}"
                known = one["oid"] in self.server.storage
                objects.append({**one, "authenticated": True, **({} if known else {"actions": {"upload": {"href": href}}})})
            self.json({"transfer": "basic", "objects": objects})

    def storage(self, oid: str) -> None:
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                return self.error(400, "", "another sha256")
            self.server.storage[oid] = self.body
        self.send(200, self.server.storage[oid])

    def api(self, name: str, rest: list[str]) -> None:
        kind, what = (rest or ["revision"])[0], "/".join(rest[1:]) or "main"
        if self.command == "POST" and not self.may_write():
            return None
        if (repository := self.readable(name)) is None:
            return None
        if kind == "preupload":
            modes = ("regular", "lfs")
            files = json.loads(self.body)["files"]
            return self.json(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": modes[f["path"].endswith(LARGE)], "shouldIgnore": False}
                        for f in files
                    ]
                }
            )
        if kind == "branch":
            if what in repository.refs:
                return self.error(409, "", "exists")
            repository.refs[what] = repository.refs["main"]
            return self.json({})
        commit = repository.resolve(what)
        if not commit:
            return self.error(404, "RevisionNotFound", f"Invalid rev id: {what}")
        if kind == "commit":
            return self.commit(name, repository, what)
        if kind == "revision":
            siblings = [{"rfilename": path} for path in repository.commits[commit]]
            return self.json({"_id": name, "id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []})
        if kind == "tree":
            return self.json([_entry(path, data) for path, data in repository.commits[commit].items()])
        return self.error(404, "", "no such call")

    def commit(self, name: str, repository: Repository, branch: str) -> None:
        files = {}
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.storage[value["oid"]]
        if "create_pr=1" in self.path:
            repository.refs["refs/pr/1"] = repository.refs[branch]
            branch = "refs/pr/1"
        sha = repository.commit(files, branch)
        request = {"pullRequestUrl": f"{self.server.url}/{name}/discussions/1"} if branch == "refs/pr/1" else {}
        self.json({"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}", **request})

    # Reading

    def readable(self, name: str) -> Repository | None:
        repository = self.server.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {WRITER}"
        if repository is None or (repository.private and not known):
            self.error(404 if known else 401, "RepoNotFound", "Repository not found")
            return None
        return repository

    def resolve(self, name: str, revision: str, path: str) -> None:
        if (repository := self.readable(name)) is None:
            return None
        if repository.gated:
            return self.error(403, "GatedRepo", f"Access to model {name} is restricted")
        commit = repository.resolve(revision)
        if not commit:
            return self.error(404, "RevisionNotFound", "Invalid rev id")
        if path not in repository.commits[commit]:
            return self.error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        data = repository.commits[commit][path]
        entry, headers = _entry(path, data), {"X-Repo-Commit": commit}
        headers["ETag"] = f'"{entry["oid"]}"'
        if "lfs" not in entry:
            return self.send(200, data, headers)
        self.server.storage[entry["lfs"]["oid"]] = data
        headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(data))}
        elsewhere = self.server.url.replace("127.0.0.1", "localhost")  # as on the Hub, another host has the large files
        return self.send(302, b"", {**headers, "Location": f"{elsewhere}/storage/{entry['lfs']['oid']}"})

    # Answers

    def json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        told = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.send(status, json.dumps({"error": message}).encode(), {**told, "Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """A file as the Hub lists it: a git blob, or a pointer to large-file storage."""
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry
