"""Serves the in-memory service of ``sigoptlite`` over pipes: one JSON object a line in, one out.

This file is run by the interpreter of sigoptlite's own environment, which has no distune: it imports nothing of it.
A request is ``{"method", "path", "data"}``; the answer is ``{"body"}``, or ``{"error"}`` with what the service said.
"""

import json
import os
import sys


def plain(value):  # type: ignore[no-untyped-def]
    """NumPy scalars and arrays as plain values."""
    return value.tolist()


def main() -> None:
    """Answer until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not stand between the replies

    import random

    import numpy
    from sigoptlite import LocalDriver  # type: ignore[import-not-found]

    if len(sys.argv) > 1:
        # libsigopt draws from NumPy's global generator, qmcpy from seeds that it takes from there
        numpy.random.seed(int(sys.argv[1]))
        random.seed(int(sys.argv[1]))
    driver = LocalDriver()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            path = [str(part) for part in request["path"]]
            answer = {"body": driver.request(request["method"], path, request["data"], None)}
        except Exception as error:  # whatever the service raises is its answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(answer, default=plain) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
