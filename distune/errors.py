"""Every error that distune raises on purpose.

Each message says what happened, where, and what to do about it. The class decides the exit code of the
command line (see ``distune.cli``): ``UsageError`` and its children are the user's to mend (2), the rest are
failures of the run itself (1).
"""

from __future__ import annotations


class DistuneError(Exception):
    """Base of all errors of distune."""


class UsageError(DistuneError):
    """Wrong configuration, wrong arguments or input that does not exist: nothing was run."""


class ConfigError(UsageError):
    """The configuration is wrong. The message lists every problem found, each with its position."""


class MissingExtraError(UsageError):
    """An optional dependency is needed for what was asked.

    Args:
        package: The distribution that is missing, e.g. ``onnxruntime``.
        extra: The extra of distune that brings it, e.g. ``onnx``.
        purpose: What it was needed for, e.g. ``to load an ONNX model``.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{package} is needed {purpose}; install it with: pip install 'distune[{extra}]'")
        self.package = package
        self.extra = extra
        self.purpose = purpose

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        return type(self), (self.package, self.extra, self.purpose)


class ModelError(UsageError):
    """The model cannot be loaded or is of a kind that cannot be quantized (already quantized, opset too old, ...)."""


class DataError(UsageError):
    """A dataset, transform or dataloader does not deliver what the model or the metric needs."""


class UserCodeError(UsageError):
    """A function of the user (eval_func, dataset, metric, ...) raised; the message carries its traceback."""


class SpaceError(UsageError):
    """The user's constraints leave nothing to tune, or a pattern of them matches no op."""


class TrialError(DistuneError):
    """One tuning config could not be quantized or judged; the run goes on with the others."""


class CancelledError(DistuneError):
    """The work in hand is wanted no longer: it ends where it is."""


class JournalError(DistuneError):
    """The journal is damaged before its last record, or cannot be written."""


class WorkspaceError(UsageError):
    """The workspace cannot be used: unwritable, in use by another run, or holding another job's journal."""


class TransportError(DistuneError):
    """A message could not be delivered, or no worker is left."""
