"""Which strategies there are, by name.

A strategy registers itself: a class ``AbcTuneStrategy`` under ``@strategy_registry`` is known as ``abc``. The ones of
this package are found by looking at its modules, so that a new one is one new file.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import TypeVar

from distune.config.imports import import_module_or_file
from distune.config.job import StrategySpec
from distune.errors import UsageError
from distune.strategies.base import TuneStrategy

_SUFFIX = "TuneStrategy"
_STRATEGIES: dict[str, type[TuneStrategy]] = {}

S = TypeVar("S", bound=type[TuneStrategy])


def strategy_registry(cls: S) -> S:
    """Class decorator: register a strategy under its class name in lower case, without ``TuneStrategy``.

    Raises:
        UsageError: The class is not a ``TuneStrategy`` or its name does not end in ``TuneStrategy``.
    """
    name = cls.__name__
    if not (isinstance(cls, type) and issubclass(cls, TuneStrategy) and name.endswith(_SUFFIX) and name != _SUFFIX):
        raise UsageError(f"{name}: a strategy is a subclass of TuneStrategy whose name ends in {_SUFFIX!r}")
    _STRATEGIES[name.removesuffix(_SUFFIX).lower()] = cls
    return cls


def strategies() -> Mapping[str, type[TuneStrategy]]:
    """Every registered strategy by name, the package's own included."""
    package = import_module("distune.strategies")
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"distune.strategies.{module.name}")
    return dict(sorted(_STRATEGIES.items()))


def strategy_class(spec: StrategySpec) -> type[TuneStrategy]:
    """The class that ``spec`` names; ``spec.module`` (module or file) is imported first.

    Raises:
        UsageError: No strategy has that name.
    """
    if spec.module:
        import_module_or_file(spec.module, "tuning.strategy.module")
    known = strategies()
    if spec.name not in known:
        raise UsageError(f"unknown strategy {spec.name!r}; known: {', '.join(known)}")
    return known[spec.name]
