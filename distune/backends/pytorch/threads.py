"""How many threads torch uses inside an op."""

from __future__ import annotations

import torch


class intra_op_threads:
    """Intra-op threads inside a ``with`` block; setting them costs, so only where they differ."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._before = threads

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        if self._before != self._threads:
            torch.set_num_threads(self._threads)

    def __exit__(self, *_: object) -> None:
        if self._before != self._threads:
            torch.set_num_threads(self._before)
