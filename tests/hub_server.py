"""A small hub on this machine: just enough of its interface to download a model from."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tiny_models import COMMIT


@contextmanager
def hub(
    models: dict[str, Path], status: int | None = None, gate: threading.Event | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Serve folders under model names; yields the address and the paths asked for.

    With ``status`` every answer is that error. Until it is set, ``gate`` lets nobody know more than
    that there is a hub.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(f"{self.command} {path}")
            if gate is not None and not gate.is_set() and path != "/":
                gate.wait()
                self.close_connection = True
                return None  # whoever asked has lost patience by now
            if status is not None:
                return self._send(status, b"{}")
            for name, folder in models.items():
                tree = f"/api/models/{name}/tree/"
                if path == f"/api/models/{name}" or path.startswith(f"/api/models/{name}/revision"):
                    files = [{"rfilename": file} for file in _files(folder)]
                    return self._json({"id": name, "sha": COMMIT, "siblings": files})
                if path.startswith(tree):
                    return self._json([_entry(folder, file) for file in _files(folder)])
                if path.startswith(f"/{name}/resolve/{COMMIT}/"):
                    return self._file(folder / path.split(COMMIT + "/", 1)[1])
            if path == "/":
                return self._send(200, b"")
            headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            return self._send(404, b"{}", headers)

        do_HEAD = do_GET  # noqa: N815 - the name http.server looks for

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

        def _json(self, content: object) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _file(self, path: Path) -> None:
            content = path.read_bytes()
            etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

        def _send(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        if gate is not None:
            gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _entry(folder: Path, file: str) -> dict[str, object]:
    content = (folder / file).read_bytes()
    oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return {"type": "file", "path": file, "size": len(content), "oid": oid}
