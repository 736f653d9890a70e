"""Sample filters: which samples of a dataset are used. A new one is a new file here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class SampleFilter(ABC):
    """Decides on the untransformed sample, once per run."""

    @abstractmethod
    def keeps(self, sample: Any, label: Any) -> bool:
        """True where the sample is used."""
