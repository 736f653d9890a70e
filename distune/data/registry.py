"""Registries of datasets, transforms and sample filters, and the registry class that metrics use as well.

A component registers itself under its name and, where the 1.x YAML spelled it differently, under aliases::

    @dataset_registry("Npz")
    class Npz(ArrayDataset): ...

The built-in ones are found by importing every module of the room's package, so that a new one is one new file. None
of these modules imports more than numpy at import time: names and parameters can be listed without Pillow or SciPy.
"""

from __future__ import annotations

import difflib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from distune.config.job import ComponentSpec
from distune.errors import DataError

if TYPE_CHECKING:
    from distune.data.dataset import Dataset
    from distune.data.filters import SampleFilter
    from distune.data.transform import Transform

T = TypeVar("T")
C = TypeVar("C", bound=type[Any])


class ComponentRegistry(Generic[T]):
    """Classes by exact name.

    Args:
        kind: What the components are called in messages.
        package: Package whose modules register the built-in components when imported.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._classes: dict[str, type[T]] = {}
        self._loaded = False

    def register(self, name: str, *aliases: str) -> Callable[[C], C]:
        """Class decorator that makes a component known under ``name`` and ``aliases``."""

        def decorate(cls: C) -> C:
            for known_as in (name, *aliases):
                self._classes[known_as] = cls
            return cls

        return decorate

    def known(self) -> Mapping[str, frozenset[str]]:
        """Parameter names of the constructor, by component name (aliases included)."""
        self._load()
        return {name: frozenset(_parameters(cls)) for name, cls in sorted(self._classes.items())}

    def described(self) -> list[tuple[tuple[str, ...], tuple[str, ...], str]]:
        """Of each component, in the order of their names: its names, its arguments with defaults, what it does."""
        self._load()
        names: dict[type[T], list[str]] = {}
        for name, cls in self._classes.items():
            names.setdefault(cls, []).append(name)
        return [
            (tuple(known_as), tuple(map(_written, _parameters(cls).values())), _first_sentence(cls))
            for cls, known_as in sorted(names.items(), key=lambda entry: entry[1][0].lower())
        ]

    def create(self, spec: ComponentSpec, **context: Any) -> T:
        """Construct a registered component.

        Args:
            spec: Its name and arguments.
            **context: Arguments that the run supplies, used where the constructor has such a parameter and ``spec``
                does not give it (the job's ``seed``).

        Raises:
            DataError: Unknown name, unknown or missing argument, or the component refuses its arguments.
        """
        self._load()
        cls = self._classes.get(spec.name)
        if cls is None:
            raise DataError(
                f"no {self.kind} is called {spec.name!r}{_nearest(spec.name, self._classes)}; known: "
                f"{', '.join(sorted(self._classes))}; one of your own is named module:name or file.py:name"
            )
        parameters = _parameters(cls)
        unknown = sorted(set(spec.args) - set(parameters))
        if unknown:
            raise DataError(
                f"{self.kind} {spec.name} has no argument {unknown[0]!r}{_nearest(unknown[0], parameters)}; "
                f"it takes: {', '.join(parameters) or 'none'}"
            )
        args = {**{key: value for key, value in context.items() if key in parameters}, **spec.args}
        missing = [name for name, p in parameters.items() if p.default is p.empty and name not in args]
        if missing:
            raise DataError(f"{self.kind} {spec.name} needs the argument {', '.join(map(repr, missing))}")
        try:
            return cls(**args)
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.kind} {spec.name} cannot use its arguments {dict(spec.args)}: {error}") from error

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in pkgutil.iter_modules(import_module(self._package).__path__):
            import_module(f"{self._package}.{module.name}")


def names_user_code(name: str) -> bool:
    """True for ``module:name`` and ``file.py:name``, which are looked up by import and not in a registry."""
    return ":" in name


def _parameters(cls: type[Any]) -> dict[str, inspect.Parameter]:
    if cls.__init__ is object.__init__:
        return {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(cls).parameters.items() if p.kind in kinds}


def _written(parameter: inspect.Parameter) -> str:
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"


def _first_sentence(cls: type[Any]) -> str:
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1)
    return f" (did you mean {lowered[close[0]]!r}?)" if close else ""


DATASETS: ComponentRegistry[Dataset] = ComponentRegistry("dataset", "distune.data.datasets")
TRANSFORMS: ComponentRegistry[Transform] = ComponentRegistry("transform", "distune.data.transforms")
FILTERS: ComponentRegistry[SampleFilter] = ComponentRegistry("filter", "distune.data.filters")

dataset_registry = DATASETS.register
transform_registry = TRANSFORMS.register
filter_registry = FILTERS.register


def datasets() -> Mapping[str, frozenset[str]]:
    """Parameter names of every registered dataset, by name."""
    return DATASETS.known()


def transforms() -> Mapping[str, frozenset[str]]:
    """Parameter names of every registered transform, by name."""
    return TRANSFORMS.known()


def filters() -> Mapping[str, frozenset[str]]:
    """Parameter names of every registered sample filter, by name."""
    return FILTERS.known()
