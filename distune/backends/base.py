"""The contract between the engine's workers and a framework.

A backend is one file (or package) that registers a ``Backend`` under the name of its framework. It lives in the
process that runs trials, owns the fp32 model, and answers: what can be quantized, what the calibration data look
like, and what the model is under a given tuning config. It judges nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

from numpy.typing import NDArray

from distune.config.job import TuningJob
from distune.errors import UsageError
from distune.space.capability import Capability
from distune.space.op_config import TuningConfig

Feed = Mapping[str, NDArray[Any]]
"""One batch of model inputs by input name; axis 0 is the batch."""

Outputs = Sequence[NDArray[Any]]
"""Model outputs in the model's order; axis 0 is the batch."""


@dataclass(frozen=True)
class InputInfo:
    """One model input. Dimensions are an int, or a name (or ``None``) where they are dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class ModelFacts:
    """What a backend says of the fp32 model.

    Attributes:
        session_options: What every session of the run is created with, judging and deployment alike.
        versions: Version of each library that decides about numbers.
        digest: SHA-256 of the model's content, external data included; empty where the bytes of the one model file
            say it all.
    """

    capability: Capability
    inputs: tuple[InputInfo, ...]
    outputs: tuple[str, ...]
    size_bytes: int
    session_options: Mapping[str, Any]
    versions: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class LabelledBatch:
    """One batch with what a loss compares the outputs with.

    Attributes:
        index: Number of the batch in the data.
        labels: An array, a tuple of arrays, or ``None`` where the data carry none.
    """

    index: int
    feed: Feed
    labels: Any


class RunnableModel(ABC):
    """A model ready to run: the fp32 one, or the outcome of one tuning config."""

    @abstractmethod
    def predict(self, feed: Feed) -> Outputs:
        """Run one batch."""

    def predict_batch(self, key: Hashable, feed: Feed) -> Outputs:
        """As ``predict``. The same key always comes with the same feed, so that what was made of it may be kept."""
        return self.predict(feed)

    def prepare(self, batches: Iterable[tuple[Hashable, Feed]]) -> None:
        """The batches that ``predict_batch`` will surely be given, with their keys: what they need may be made now."""

    def timed(self, feed: Feed) -> Callable[[], object]:
        """A closure that runs ``feed`` once with as little of Python around it as possible, for latency."""
        return lambda: self.predict(feed)

    @property
    @abstractmethod
    def native(self) -> Any:
        """The framework's own object (``onnx.ModelProto``, ``torch.nn.Module``) for users who want it."""

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes of the model as exported."""

    @property
    def ops_executed_int8(self) -> int | None:
        """Ops with weights that run on integers, read from the optimised graph; ``None`` where it cannot be read."""
        return None

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why an op that the config quantizes does not execute in int8, by op name."""
        return {}

    @property
    def compile_s(self) -> float:
        """Seconds that a compiler has spent on this model so far; no part of any latency."""
        return 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of this model, e.g. a recipe that found nothing to do."""
        return ()


@dataclass(frozen=True)
class ExportedModel:
    """Files of a deployable model (the model itself first) and what is needed to make it again without data."""

    files: Mapping[str, bytes]
    deploy: Mapping[str, Any] = field(default_factory=dict)


class Backend(ABC):
    """One framework's side of the bargain. Built once per worker process; not thread-safe.

    Constructing it loads the fp32 model of ``job.model`` and does all that is needed once per run.

    Raises (constructor):
        ModelError: The model cannot be loaded or quantized; says why and what to do.
        MissingExtraError: The framework is not installed.

    Attributes:
        standalone: ``module:function`` by which a fresh process runs an exported model as a deployment would, for its
            memory footprint: ``function(path, feed, threads)`` loads the model file and runs ``feed`` once. Its module
            imports no more than that needs. Empty where there is none.
        judged_is_deployed: What ``load`` gives has the numbers of what is deployed. Where it has not, the engine has
            what meets the criterion judged again in full on ``load_deployed``.
        labelled_probes: Kinds of probes that are asked with the labels of the data, by ``probe_labelled``.
    """

    standalone: ClassVar[str] = ""
    judged_is_deployed: ClassVar[bool] = True
    labelled_probes: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def __init__(self, job: TuningJob) -> None: ...

    @abstractmethod
    def facts(self) -> ModelFacts:
        """What can be done with the model."""

    @abstractmethod
    def load(self, config: TuningConfig | None, threads: int = 1) -> RunnableModel:
        """The model of ``config`` (``None``: the fp32 model), ready to run with ``threads`` intra-op threads.

        Raises:
            TrialError: The config cannot be applied.
        """

    def load_deployed(self, config: TuningConfig, threads: int = 1) -> RunnableModel:
        """The model of ``config`` with the numbers of a deployment; ``load``'s where ``judged_is_deployed``.

        Raises:
            TrialError: The config cannot be applied or lowered.
        """
        return self.load(config, threads)

    def share(self, base: TuningConfig | None, samples: int = 0, memory_limit: int = 0) -> None:
        """The configs loaded next differ from ``base`` in few ops each; ``None``: in whatever they like.

        What their models compute alike may then be computed once a batch (``RunnableModel.predict_batch``). It changes
        no number, and a backend that cannot do it does nothing.

        Args:
            samples: How many each of the models is scored on.
            memory_limit: Bytes that what is kept may take.
        """

    def prepare_calibration(self, sampling_size: int, histograms: bool = True) -> None:
        """Told before ``calibrate``.

        Args:
            sampling_size: Samples in all shards; statistics of the plain graph for as many are there already.
            histograms: Configs need how often values occur, too (``TuningConfig.needs_histograms``).
        """

    @abstractmethod
    def calibrate(self, variant: tuple[tuple[str, Any], ...], batches: Iterable[tuple[int, Feed]]) -> bytes:
        """Statistics of the given ``(batch index, feed)`` pairs, in the form of ``backends.statistics``."""

    @abstractmethod
    def set_statistics(self, variant: tuple[tuple[str, Any], ...], sampling_size: int, blob: bytes) -> None:
        """Keep the merged statistics from which ``load`` takes its ranges."""

    def variant(self, config: TuningConfig) -> tuple[tuple[str, Any], ...]:
        """The recipes of ``config`` that change the graph before calibration, sorted by name."""
        return ()

    @abstractmethod
    def export(self, config: TuningConfig) -> ExportedModel:
        """The deployable model of ``config``."""

    @abstractmethod
    def apply(self, deploy: Mapping[str, Any], config: TuningConfig) -> ExportedModel:
        """The deployable model of ``config`` from saved ranges (``ExportedModel.deploy``), without data."""

    def probe(
        self, kind: str, config: TuningConfig, ops: Sequence[str], feeds: Sequence[Feed], args: Mapping[str, Any]
    ) -> Mapping[str, float]:
        """Answer a probe; scores by op (group) name.

        Raises:
            TrialError: The backend does not know ``kind``.
        """
        from distune.errors import TrialError

        raise TrialError(f"this backend has no probe {kind!r}")

    def probe_labelled(
        self,
        kind: str,
        config: TuningConfig,
        ops: Sequence[str],
        batches: Sequence[LabelledBatch],
        args: Mapping[str, Any],
    ) -> Mapping[str, float]:
        """As ``probe``, for the kinds in ``labelled_probes``."""
        from distune.errors import TrialError

        raise TrialError(f"this backend has no probe {kind!r}")

    def diagnose(
        self, config: TuningConfig, ops: Sequence[str], feeds: Sequence[Feed], tensors: str
    ) -> Mapping[str, Mapping[str, Any]]:
        """How far tensors of the quantized model are from fp32's.

        Args:
            ops: Op names.
            tensors: ``activation`` (an op's output), ``weight`` or ``all``.

        Returns:
            ``{op: {"activation": ..., "weight": ...}}``, each as ``backends.diagnosis.TensorComparison.result`` gives
            it; what cannot be compared is left out.

        Raises:
            TrialError: The backend cannot do this, or the config cannot be applied.
        """
        from distune.errors import TrialError

        raise TrialError("this backend cannot compare tensors")

    def close(self) -> None:
        """Free what the backend holds."""


_BACKENDS: dict[str, str] = {
    "onnxruntime": "distune.backends.onnxruntime.backend:OnnxRuntimeBackend",
    "pytorch": "distune.backends.pytorch.backend:PyTorchBackend",
    "pytorch:qat": "distune.backends.pytorch.qat.backend:TrainingBackend",
}
"""By framework, or by framework and approach where an approach has a backend of its own."""


def register_backend(framework: str, target: str) -> None:
    """Make ``framework`` known. ``target`` is ``module:class``, imported when first used."""
    _BACKENDS[framework] = target


def backend_class(framework: str, approach: str = "") -> type[Backend]:
    """The backend of a framework, the one for ``approach`` where there is one.

    Raises:
        UsageError: No backend has that name, or none of that framework trains.
    """
    if framework not in _BACKENDS:
        known = ", ".join(sorted(name for name in _BACKENDS if ":" not in name))
        raise UsageError(f"no backend for framework {framework!r}; known: {known}")
    if approach == "qat" and f"{framework}:{approach}" not in _BACKENDS:
        raise UsageError(f"quantization-aware training needs framework pytorch; {framework} does not train")
    module, _, name = _BACKENDS.get(f"{framework}:{approach}", _BACKENDS[framework]).partition(":")
    loaded: type[Backend] = getattr(import_module(module), name)
    return loaded


__all__ = [
    "Backend",
    "ExportedModel",
    "Feed",
    "InputInfo",
    "LabelledBatch",
    "ModelFacts",
    "Outputs",
    "RunnableModel",
    "backend_class",
    "register_backend",
]
