"""A driver for the official client that forwards its requests to ``sigoptlite`` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distune.errors import DistuneError

_BRIDGE = Path(__file__).with_name("bridge.py")
_CLOSE_S = 5.0


class LiteDriver:
    """The driver interface of ``sigopt.Connection``: one method, ``request``.

    The service lives in memory: with the process, its experiment is gone.

    Args:
        python: Interpreter that has sigoptlite (``environment.lite_python``).
        seed: Of the service's random draws.
    """

    def __init__(self, python: Path, seed: int) -> None:
        self._lock = threading.Lock()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process that writes it
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SIGOPT"))}
        self._process = subprocess.Popen(
            [str(python), "-W", "ignore", str(_BRIDGE), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**kept, **threads},
            text=True,
            encoding="utf-8",
            start_new_session=True,  # a Ctrl-C at the terminal ends the run in order, not the service under it
        )

    def request(self, method: str, path: Sequence[Any], data: Any, headers: Mapping[str, str] | None) -> Any:
        """Forward one request of the client.

        Raises:
            DistuneError: The service refused it, or its process has ended.
        """
        from sigopt.objects import ApiObject

        message = {"method": method.upper(), "path": [str(part) for part in path], "data": ApiObject.as_json(data)}
        assert self._process.stdin is not None  # both are pipes
        assert self._process.stdout is not None
        with self._lock:
            try:
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except (OSError, ValueError) as error:
                raise DistuneError(self._ended()) from error
        if not line:
            raise DistuneError(self._ended())
        answer = json.loads(line)
        if "error" in answer:
            raise DistuneError(f"sigoptlite refused {method} {'/'.join(map(str, path))}: {answer['error']}")
        return answer["body"]

    def close(self) -> None:
        """End the process. May be called twice."""
        if self._process.poll() is None:
            assert self._process.stdin is not None  # a pipe
            self._process.stdin.close()
            try:
                self._process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _ended(self) -> str:
        code = self._process.poll()
        tail = ""
        if not self._errors.closed:
            self._errors.seek(0)
            tail = self._errors.read().decode(errors="replace").strip()[-1000:]
        return f"the process of sigoptlite has ended (exit code {code})" + (f":\n{tail}" if tail else "")
