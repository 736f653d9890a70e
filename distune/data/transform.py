"""Base classes of transforms, and the pipeline that applies them.

A transform maps ``(sample, label)`` to ``(sample, label)`` and is called with that pair as one argument; a class or
function of the user needs no base class. What else a transform can do is said by its base class:

- ``SampleTransform`` changes the sample only.
- ``BatchTransform`` can also treat a whole batch in one NumPy call, with results bit-equal to one by one.
- ``RandomTransform`` draws; its generator is seeded by the job's seed, its place in the pipeline and the sample's
  index, so that a sample comes out the same whatever the order and number of readers.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.config.imports import import_object
from distune.config.job import ComponentSpec
from distune.data.batch import Inputs
from distune.data.registry import TRANSFORMS, names_user_code
from distune.data.user_code import guard, user_code
from distune.errors import DataError

Pair = tuple[Any, Any]


class Transform(ABC):
    """Maps ``(sample, label)`` to ``(sample, label)``."""

    @abstractmethod
    def __call__(self, pair: Pair) -> Pair:
        """The transformed pair; the argument is left as it was."""


class SampleTransform(Transform):
    """Changes the sample and leaves the label."""

    @abstractmethod
    def apply(self, sample: Any) -> Any:
        """The transformed sample: Pillow image in, Pillow image out; array in, array out, unless documented."""

    def __call__(self, pair: Pair) -> Pair:
        return self.apply(_single(self, pair[0])), pair[1]


class BatchTransform(SampleTransform):
    """A sample transform that also works on a batch of arrays at once."""

    @abstractmethod
    def batch(self, samples: NDArray[Any]) -> NDArray[Any]:
        """The same as stacking ``apply`` of each sample along axis 0, bit for bit."""

    def apply(self, sample: Any) -> Any:
        return self.batch(np.asarray(sample)[np.newaxis])[0]


class RandomTransform(Transform):
    """A transform of the sample that draws random numbers."""

    @abstractmethod
    def draw(self, sample: Any, rng: np.random.Generator) -> Any:
        """The transformed sample."""

    def __call__(self, pair: Pair) -> Pair:
        raise DataError(f"{type(self).__name__} is random and works on samples only, not as a postprocess")


def build_transform(spec: ComponentSpec, what: str = "transform") -> Transform:
    """A registered transform, or the user's own (``module:name``: a class is constructed, a function gets the args)."""
    if not names_user_code(spec.name):
        return TRANSFORMS.create(spec)
    found = import_object(spec.name, what)
    if inspect.isclass(found):
        with user_code(f"{what} {spec.name!r}"):
            made: Any = found(**spec.args)
        return made if isinstance(made, Transform) else _UserTransform(made, f"{what} {spec.name!r}")
    function = functools.partial(found, **spec.args) if spec.args else found
    return _UserTransform(function, f"{what} {spec.name!r}")


class Pipeline:
    """The transforms of a dataloader, in order."""

    def __init__(self, specs: Sequence[ComponentSpec], seed: int) -> None:
        self._steps = [build_transform(spec) for spec in specs]
        self._seed = seed

    @property
    def vectorised(self) -> bool:
        """True where ``batch`` can be used."""
        return all(isinstance(step, BatchTransform) for step in self._steps)

    def sample(self, index: int, pair: Pair) -> Pair:
        """One sample; ``index`` is its index in the dataset."""
        for place, step in enumerate(self._steps):
            with guard(step, f"transform {type(step).__name__}, sample {index},"):
                if isinstance(step, RandomTransform):
                    rng = np.random.default_rng((self._seed, place, index))
                    pair = step.draw(_single(step, pair[0]), rng), pair[1]
                else:
                    pair = step(pair)
        return pair

    def batch(self, inputs: Inputs) -> Inputs:
        """A whole batch at once, where ``vectorised``."""
        for step in self._steps:
            if isinstance(step, BatchTransform):
                with guard(step, f"transform {type(step).__name__}"):
                    inputs = step.batch(np.asarray(_single(step, inputs)))
        return inputs


class Postprocess:
    """Transforms of ``(outputs, labels)`` of a batch, applied between model and metric."""

    def __init__(self, specs: Sequence[ComponentSpec]) -> None:
        self._steps = [build_transform(spec, "postprocess") for spec in specs]
        for step, spec in zip(self._steps, specs, strict=True):
            if isinstance(step, RandomTransform):
                raise DataError(f"{spec.name} is random and works on samples only, not as a postprocess")

    def __call__(self, pair: Pair) -> Pair:
        for step in self._steps:
            with guard(step, f"postprocess {type(step).__name__}"):
                pair = step(pair)
        return pair


class _UserTransform(Transform):
    """The user's callable, with its errors named."""

    def __init__(self, function: Callable[[Pair], Any], what: str) -> None:
        self._function = function
        self._what = what
        if not callable(function):
            raise DataError(f"{what} is a {type(function).__name__}, which cannot be called with (sample, label)")

    def __call__(self, pair: Pair) -> Pair:
        with user_code(self._what):
            result = self._function(pair)
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise DataError(f"{self._what} must return (sample, label); it returned a {type(result).__name__}")
        return result[0], result[1]


def _single(step: Transform, sample: Any) -> Any:
    """The sample, which must be one array or image for the built-in transforms."""
    if isinstance(sample, dict | tuple):
        names = ", ".join(map(str, sample)) if isinstance(sample, dict) else f"{len(sample)} arrays"
        raise DataError(
            f"{type(step).__name__} works on samples of one array; these have several ({names}): "
            "write a transform of your own (module:callable), or prepare the arrays beforehand"
        )
    return sample
