"""A SigOpt server on 127.0.0.1: the official in-memory service behind the HTTP routes that the client calls.

What sigoptlite lacks (projects, tokens, metadata, runs, parallel suggestions) is kept here; the optimisation is
its own.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from distune.strategies.sigopt_service.environment import install
from distune.strategies.sigopt_service.lite import LiteDriver

TOKEN = "TOKEN-THAT-NOBODY-MAY-SEE"
PROJECT = "quantization"
EXPERIMENT = "4711"


class Refused(Exception):
    """The answer is an HTTP error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Front:
    """The server's state, for tests to look at."""

    driver: LiteDriver
    url: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    experiment: dict[str, Any] = field(default_factory=dict)
    suggestions: dict[str, dict[str, Any]] = field(default_factory=dict)
    tags: list[dict[str, Any]] = field(default_factory=list)
    observations: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Any:
        """What the server says to one request.

        Raises:
            Refused: It refuses.
        """
        self.calls.append((method, path))
        if path == "tokens/self":
            return {"client": "7", "token_type": "client-api", "object": "token"}
        if path.startswith("clients/7/projects/"):
            return self._project(method, path.removeprefix("clients/7/projects/"), body)
        if path == "training_runs/run-1":
            self.run.update(body)
            return {"id": "run-1", "state": self.run.get("state", "active")}
        if path == "experiments" and method == "POST":
            return self._create(body)
        if path == f"experiments/{EXPERIMENT}" and self.experiment:
            return self.experiment
        if path == f"experiments/{EXPERIMENT}/suggestions":
            return self._suggest(body)
        if path == f"experiments/{EXPERIMENT}/observations":
            return self._observe(body)
        if path == f"experiments/{EXPERIMENT}/best_assignments":
            return self._lite("GET", "best_assignments", None)
        raise Refused(404, f"no such thing: {method} {path}")

    def _project(self, method: str, path: str, body: dict[str, Any]) -> Any:
        if path == PROJECT:
            return {"id": PROJECT, "object": "project"}
        if path == f"{PROJECT}/training_runs" and method == "POST":
            self.run.update(body)
            return {"id": "run-1", "state": "active", "assignments": {}}
        raise Refused(404, f"no such project: {path}")

    def _create(self, body: dict[str, Any]) -> Any:
        kept = {key: body[key] for key in ("name", "parameters", "metrics", "observation_budget")}
        created = self.driver.request("POST", ["experiments"], kept, None)
        self.experiment = {**created, **body, "id": EXPERIMENT}
        return self.experiment

    def _suggest(self, body: dict[str, Any]) -> Any:
        self.tags.append(body.get("metadata", {}))
        found = self._lite("POST", "suggestions", {})
        number = str(len(self.suggestions) + 1)
        self.suggestions[number] = {**found, "id": number}
        return self.suggestions[number]

    def _observe(self, body: dict[str, Any]) -> Any:
        self.observations.append(body)
        assignments = self.suggestions[body["suggestion"]]["assignments"]
        kept = {key: body[key] for key in ("values", "failed") if key in body}
        return self._lite("POST", "observations", {"assignments": assignments, **kept})

    def _lite(self, method: str, what: str, body: Any) -> Any:
        return self.driver.request(method, ["experiments", "-1", what], body, None)


@contextmanager
def front() -> Iterator[Front]:
    """A server on an ephemeral port, until the end of the block."""
    state = Front(LiteDriver(install(), seed=1))

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}") or {}
            user = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode().partition(":")[0]
            path = self.path.partition("?")[0].removeprefix("/v1/")
            try:
                if user != TOKEN:
                    raise Refused(401, "unknown token")
                status, answer = 200, state.answer(self.command, path, body)
            except Refused as refusal:
                status, answer = refusal.status, {"message": str(refusal)}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_MERGE = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        state.driver.close()
