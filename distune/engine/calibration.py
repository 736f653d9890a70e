"""Calibration, once per graph variant and sampling size: sharded over the workers, merged, and kept.

How often values occur is counted when the first config asks for more than their minima and maxima: to count takes as
long as all the rest of the statistics, and most runs never ask. The data go through the model once more then.

The merged statistics do not depend on the number of shards, so they are cached in the workspace and serve a resumed
run with another number of ranks as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import starmap
from pathlib import Path

from distune.backends.statistics import STATISTICS_VERSION, merge, nonfinite_values
from distune.engine.dispatcher import Dispatcher
from distune.engine.events import CalibrationDone, CalibrationStarted, Listener
from distune.engine.failures import raise_failure
from distune.errors import DataError, DistuneError
from distune.evaluation.finite import NonFinite, listed
from distune.journal.files import write_file
from distune.journal.workspace import Workspace
from distune.space.op_config import TuningConfig
from distune.space.tuning_space import Variant
from distune.trial.messages import Calibrate, Failure, LoadStatistics, RequestBody, Statistics

_DIGEST_BYTES = hashlib.sha256().digest_size


class Calibrator:
    """Sees to it that every worker has the statistics that a config needs.

    Args:
        digest: Identity of model and data, so that a cache of other data is not used.
        warn: Is told what the user should know.
        variant: Which recipes of a config change what is calibrated (``TuningSpace.variant``).
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        workspace: Workspace,
        digest: str,
        listener: Listener,
        warn: Callable[[str], None],
        variant: Callable[[TuningConfig], Variant] = lambda config: (),
    ) -> None:
        self._dispatcher = dispatcher
        self._workspace = workspace
        self._digest = digest
        self._listener = listener
        self._tell = warn
        self._variant = variant
        self._loaded: dict[tuple[Variant, int], bool] = {}
        """Whether the statistics that every worker has hold histograms."""
        self._said: set[str] = set()

    def ready(self, config: TuningConfig) -> bool:
        """Whether every worker has what ``config`` needs, so that ``ensure`` has nothing to do."""
        return not config.sampling_size or all(starmap(self._has, self._needed(config)))

    def prepare(self, body: RequestBody, *configs: TuningConfig) -> None:
        """``ensure`` for all ``configs`` that ``body`` needs, unless the journal answers it."""
        if not self._dispatcher.knows(body):
            for config in configs:
                self.ensure(config)

    def ensure(self, config: TuningConfig) -> None:
        """Calibrate for ``config`` unless that was done already; waits until every worker will have it.

        The graph of a variant is made from statistics of the plain graph, so that one is calibrated before it.

        Raises:
            DataError: There are fewer calibration samples than asked for.
            UserCodeError: The calibration dataloader raised.
        """
        if not config.sampling_size:
            return
        for needed in self._needed(config):
            if not self._has(*needed):
                self._load(*needed)

    def _needed(self, config: TuningConfig) -> list[tuple[Variant, int, bool]]:
        """Variants and sampling sizes of statistics, and whether with histograms; what others rest on comes first."""
        own = self._variant(config)
        plain = [((), config.sampling_size, False)] if own else []
        return [*plain, (own, config.sampling_size, config.needs_histograms)]

    def _has(self, variant: Variant, sampling_size: int, histograms: bool) -> bool:
        loaded = self._loaded.get((variant, sampling_size))
        return loaded is not None and (loaded or not histograms)

    def _load(self, variant: Variant, sampling_size: int, histograms: bool) -> None:
        cached = self._workspace.cache / self._cache_name(variant, sampling_size, histograms)
        blob = self._kept(cached)
        if blob is None:
            blob = self._collect(variant, sampling_size, histograms)
            write_file(cached, hashlib.sha256(blob).digest() + blob)
        if not variant:  # what variants rewrite of it is no news
            self._warn(_about_tensors(blob))
        self._dispatcher.broadcast(LoadStatistics(variant, sampling_size, blob))
        self._loaded[variant, sampling_size] = histograms

    def _kept(self, cached: Path) -> bytes | None:
        """What an earlier start left in a file: the digest of the statistics, then they themselves."""
        if not cached.exists():
            return None
        content = cached.read_bytes()
        digest, blob = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(blob).digest() == digest:
            return blob
        self._tell(f"{cached} is damaged: the model is calibrated again")
        return None

    def _warn(self, warnings: Iterable[str]) -> None:
        """Say what was not said before."""
        for text in warnings:
            if text not in self._said:
                self._said.add(text)
                self._tell(text)

    def _collect(self, variant: Variant, sampling_size: int, histograms: bool) -> bytes:
        self._listener.on(CalibrationStarted(sampling_size))
        start = self._dispatcher.now()
        shards = len(self._dispatcher.workers)
        tasks = [
            self._dispatcher.submit(Calibrate(sampling_size, shard, shards, variant, histograms), priority=-1)
            for shard in range(shards)
        ]
        blobs: list[bytes] = []
        nonfinite = NonFinite()
        samples = 0
        for outcome in self._dispatcher.wait(tasks):
            if isinstance(outcome.body, Failure):
                raise_failure(outcome.body, "calibration failed: ")
            if not isinstance(outcome.body, Statistics):
                raise DistuneError(f"worker {outcome.rank} answered Calibrate with {type(outcome.body).__name__}")
            if outcome.body.samples:
                blobs.append(outcome.body.blob)
                samples += outcome.body.samples
                nonfinite.add(outcome.body.nonfinite)
        if not samples:
            raise DataError("the calibration dataloader gave no samples")
        self._listener.on(CalibrationDone(samples, self._dispatcher.now() - start))
        self._warn(nonfinite.of_data("calibration"))
        return merge(blobs)

    def _cache_name(self, variant: Variant, sampling_size: int, histograms: bool) -> str:
        key = json.dumps([STATISTICS_VERSION, self._digest, variant, sampling_size, histograms])
        return f"statistics-{hashlib.sha256(key.encode()).hexdigest()[:16]}.bin"


def _about_tensors(blob: bytes) -> tuple[str, ...]:
    """A warning where tensors took values that are not finite, or none; those that have no range at all come first."""
    found = sorted(nonfinite_values(blob).items(), key=lambda item: (item[1].finite > 0, item[0]))
    if not found:
        return ()
    texts = [f"{name} ({each.nonfinite}{'' if each.finite else ', all there are: no range'})" for name, each in found]
    return (
        f"values that are not finite were left out of the ranges of {len(found)} tensors in calibration: "
        f"{listed(texts)}; attention masks of -inf are harmless, for NaN look at the calibration data and at fp32",
    )
