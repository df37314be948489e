"""Stand-ins on this machine for the places that downloads come from."""

import contextlib
import hashlib
import http.server
import json
import threading


@contextlib.contextmanager
def serve(files, cut=()):
    """Serve {path: bytes} on localhost -> (address, list of requested paths).

    A path in `cut` loses its connection halfway, the first time only.
    """
    asked, cut = [], set(cut)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = self.path.split("?")[0]
            asked.append(path)
            body = files.get(path, b"")
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(404 if path not in files else 206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", "1" * 40)
            self.end_headers()
            if self.command == "GET" and path in cut:
                cut.discard(path)
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.connection.close()
            elif self.command == "GET":
                self.wfile.write(body[start:])

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def hub(repo, revision, contents):
    """The paths under which a model hub offers the files {name: bytes} of one repository."""
    entry = lambda name, data: {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    siblings = [{"rfilename": name} for name in contents]
    info = json.dumps({"id": repo, "modelId": repo, "sha": revision, "siblings": siblings}).encode()
    tree = json.dumps([entry(name, data) for name, data in contents.items()]).encode()
    return {
        f"/api/models/{repo}": info,
        f"/api/models/{repo}/revision/{revision}": info,
        f"/api/models/{repo}/tree/{revision}": tree,
    } | {f"/{repo}/resolve/{revision}/{name}": data for name, data in contents.items()}
