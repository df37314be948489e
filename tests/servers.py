"""Stand-ins on this machine for the places that downloads come from."""

import contextlib
import hashlib
import http.server
import io
import json
import socket
import threading
import time
import warnings
import zipfile

from support import checkpoint, dataset  # where downloads come from, and the folder they go to


@contextlib.contextmanager
def serve(files, cut=()):
    """Serve {path: bytes} on localhost -> (address, what was asked for)

    The latter is a list that grows by lines such as "GET /path from 10".  A path loses its
    connection halfway for as long as it stands in `cut`.
    """
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = self.path.split("?")[0]
            body = files.get(path, b"")
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            asked.append(f"{self.command} {path}" + f" from {start}" * (start > 0))
            self.send_response(404 if path not in files else 206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            if "/resolve/" in path:
                self.send_header("X-Repo-Commit", path.split("/resolve/")[1].split("/")[0])
            self.end_headers()
            if self.command == "GET" and path in cut:
                self.wfile.write(body[start : len(body) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif self.command == "GET":
                self.wfile.write(body[start:])

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def hub(repo, revisions, branch):
    """The paths under which a model hub offers a repository.

    revisions: {commit: {name: bytes}}; branch: the one of these to which `main` leads.
    """
    api = f"/api/models/{repo}"
    paths = {}
    for name, contents in (revisions | {"main": revisions[branch]}).items():
        sha = branch if name == "main" else name
        siblings = [{"rfilename": file} for file in contents]
        info = {"id": repo, "modelId": repo, "sha": sha, "siblings": siblings}
        paths[f"{api}/revision/{name}"] = json.dumps(info).encode()
        paths[f"{api}/tree/{name}"] = json.dumps(tree_of(contents)).encode()
        for file, data in contents.items():
            paths[f"/{repo}/resolve/{name}/{file}"] = data
    paths[api] = paths[f"{api}/revision/main"]
    return paths


def tree_of(contents):
    """What a hub tells of {name: bytes}"""
    entries = []
    for name, data in contents.items():
        oid = hashlib.sha1(data).hexdigest()
        entries.append({"type": "file", "path": name, "size": len(data), "oid": oid})
    return entries


def archive(members, method=zipfile.ZIP_DEFLATED):
    """A zip of (name, bytes), the same at any hour."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name, (2020, 2, 20, 20, 20, 20)), content, method)
    return buffer.getvalue()


NOWHERE = "http://127.0.0.1:9"  # nobody listens there


def redirect(monkeypatch, root, archive=NOWHERE, md5=None, models=NOWHERE):
    """In this process downloads go under root and come from these addresses.

    archive: address of SST-2; md5: the one that it has to have; models: address of a hub.
    """
    from huggingface_hub import constants

    for room in (checkpoint, dataset):
        monkeypatch.setattr(room, "ROOT", root)
    monkeypatch.setattr(dataset, "SST2_URL", archive)
    monkeypatch.setattr(dataset, "SST2_MD5", md5 or dataset.SST2_MD5)
    monkeypatch.setattr(constants, "ENDPOINT", models)
    template = models + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", no_sleep)  # the library waits 23 s between its tries


def no_sleep(seconds):
    pass
