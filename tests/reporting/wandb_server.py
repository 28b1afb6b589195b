"""A stand-in for W&B's server, on this machine's own address: so much of its interface as the tests need.

W&B's reader of offline files is inside its compiled core; `wandb sync` to this server has it read one. What the
real server makes of the same requests cannot be seen from here.
"""

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Received:
    """What was uploaded."""

    def __init__(self):
        self.runs = []
        """Variables of each request to make or change a run."""
        self.lines = defaultdict(list)
        """Of files that are sent line by line, in order: history, system metrics, console."""
        self.files = {}
        """Contents by name."""
        self.views = []
        """Variables of each request to save a workspace."""

    @property
    def history(self):
        return [json.loads(line) for line in self.lines["wandb-history.jsonl"]]


@contextmanager
def wandb_server():
    """A server's environment variables for a process that is to use it, and what it will have received."""
    received = Received()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(received))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        yield (
            {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "NO_PROXY": "127.0.0.1"},
            received,
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sync(*folders):
    """Let `wandb sync` upload offline runs' folders; what came."""
    command = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
    with wandb_server() as (environment, received):
        done = subprocess.run(
            command,
            env=os.environ | environment,
            cwd=folders[0],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    return received


def _handler(received):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            self._answer(self._take(body))

        def do_PUT(self):
            self.do_POST()

        def log_message(self, *arguments):
            """Says nothing."""

        def _take(self, body):
            if self.path == "/graphql":
                return {"data": _graphql(received, json.loads(body), self.headers["Host"])}
            if self.path.endswith("/file_stream"):
                for name, part in json.loads(body).get("files", {}).items():
                    lines = received.lines[name]
                    lines[part["offset"] :] = part["content"]
            elif self.path.startswith("/upload/"):
                received.files[self.path.removeprefix("/upload/")] = body
            return {}

        def _answer(self, answer):
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    return Handler


def _graphql(received, request, host):
    variables = request.get("variables") or {}
    named = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
    match named[1] if named else "Viewer":  # wandb 0.27 asks for the viewer without a name
        case "Viewer" | "GetDefaultEntity":
            return {"viewer": {"id": "u", "entity": "someone", "username": "someone"}}
        case "ArtifactType":  # whether there is one of another type by that name
            return {"project": None}
        case "UpsertView2":
            received.views.append(variables)
            view = {"id": "v", "name": "nw-growth-v"}
            return {"upsertView": {"view": view, "inserted": True}}
        case "UpsertBucket":
            received.runs.append(variables)
            project = {"id": "p", "name": "growlm", "entity": {"id": "e", "name": "someone"}}
            names = {"id": "r", "name": variables["name"], "displayName": variables["displayName"]}
            sent = len(received.lines["wandb-history.jsonl"])
            bucket = {**names, "config": "{}", "historyLineCount": sent, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        case "CreateRunFiles":
            files = [
                {"name": n, "uploadUrl": f"http://{host}/upload/{n}"} for n in variables["files"]
            ]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        case "CreateArtifact":  # there already: W&B then sends no second copy
            latest = {"latestArtifact": {"id": "a"}}
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": latest}
            return {"createArtifact": {"artifact": artifact}}
    return {}
