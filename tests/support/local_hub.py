"""A small Hugging Face style hub on this host, for the real huggingface_hub code to talk to."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class LocalHub:
    """What it serves, and what was asked. Change it between requests as a test needs."""

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)  # repo > commit >
    branches: dict[str, dict[str, str]] = field(default_factory=dict)  # repo > branch > commit
    token: str = ""  # "" = open to everybody
    cut_after: int = -1  # bytes after which the connection breaks for good; -1 = never
    stall_after: int = -1  # bytes after which nothing comes until `go_on` is set; -1 = never
    go_on: threading.Event = field(default_factory=threading.Event)
    ranges: list[str] = field(default_factory=list)
    served: int = 0
    url: str = ""

    def add(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit files to a branch; return the commit."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repos.setdefault(repo, {})[commit] = files
        self.branches.setdefault(repo, {})[branch] = commit
        return commit


def _handler(hub: LocalHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _fail(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _answer(self, body: bool) -> None:
            path = unquote(self.path.split("?")[0])
            given = self.headers.get("Authorization", "")
            if hub.token and given != f"Bearer {hub.token}":
                return self._fail(401, "RepoNotFound")
            if path.startswith("/api/models/"):
                path = path.removeprefix("/api/models/")
                repo, tree, revision = path.partition("/tree/")
                if not tree:
                    repo, _, revision = path.partition("/revision/")
                return self._info(repo, revision or "main", bool(tree))
            repo, _, rest = path[1:].partition("/resolve/")
            revision, _, name = rest.partition("/")
            if repo not in hub.repos:
                return self._fail(404, "RepoNotFound")
            commit = hub.branches[repo].get(revision, revision)
            files = hub.repos[repo].get(commit)
            if files is None:
                return self._fail(404, "RevisionNotFound")
            if name not in files:
                return self._fail(404, "EntryNotFound")
            return self._file(files[name], commit, body)

        def _info(self, repo: str, revision: str, tree: bool) -> None:
            if repo not in hub.repos:
                return self._fail(404, "RepoNotFound")
            commit = hub.branches[repo].get(revision, revision)
            if commit not in hub.repos[repo]:
                return self._fail(404, "RevisionNotFound")
            files = hub.repos[repo][commit].items()
            about: object = [
                {"type": "file", "oid": "0" * 40, "size": len(data), "path": name}
                for name, data in files
            ]
            if not tree:
                siblings = [
                    {"rfilename": name, "size": len(data), "blobId": "0" * 40}
                    for name, data in files
                ]
                about = {"id": repo, "sha": commit, "siblings": siblings}
            data = json.dumps(about).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _file(self, data: bytes, commit: str, body: bool) -> None:
            asked = self.headers.get("Range", "")
            start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if not body:
                return
            if asked:
                hub.ranges.append(asked)
            sent = data[start:]
            if 0 <= hub.cut_after < len(sent):
                sent = sent[: hub.cut_after]
                self.close_connection = True
                hub.cut_after = 0  # and nothing comes after that
            if 0 <= hub.stall_after < len(sent):
                self.wfile.write(sent[: hub.stall_after])
                hub.served += hub.stall_after
                hub.go_on.wait(60)
                self.close_connection = True
                return
            self.wfile.write(sent)
            hub.served += len(sent)

    return Handler


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Serve a hub while inside."""
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
