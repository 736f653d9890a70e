"""What the ``forward`` of a module takes by position, ``*args`` included, and in which form ``torch.export`` wants it.

Tensors that go into ``*args`` are named as ``torch.export`` names them: ``args_0``, ``args_1``, ...
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distune.errors import ModelError

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Signature:
    """Parameters of a ``forward``.

    Attributes:
        owner: Class of the module.
        names: Of the parameters that may be given by position.
        rest: Name of ``*args``, empty where there is none.
        keywords: Names of the parameters that are taken by keyword only.
    """

    owner: str
    names: tuple[str, ...]
    rest: str
    keywords: tuple[str, ...]

    @classmethod
    def of(cls, module: torch.nn.Module) -> Signature:
        """The signature of a module.

        Raises:
            ModelError: ``forward`` takes nothing by position, or needs something by keyword.
        """
        parameters = inspect.signature(module.forward).parameters.values()
        names = tuple(each.name for each in parameters if each.kind in _BY_POSITION)
        rest = "".join(each.name for each in parameters if each.kind is inspect.Parameter.VAR_POSITIONAL)
        keywords = [each for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
        owner = type(module).__name__
        needed = [each.name for each in keywords if each.default is inspect.Parameter.empty]
        if needed:
            raise ModelError(
                f"{owner}.forward takes {', '.join(needed)} by keyword only, but models are given their inputs by "
                f"position; {_wrap(needed[0])}"
            )
        if not names and not rest:
            raise ModelError(
                f"{owner}.forward takes no input by position, which is how models are given theirs; "
                f"{_wrap(keywords[0].name if keywords else 'x')}"
            )
        return cls(owner, names, rest, tuple(each.name for each in keywords))

    def arguments(self, given: int | Mapping[Any, Any]) -> list[str]:
        """Names of what is given by position.

        Args:
            given: How many values there are, or the values by name.
        """
        extra = 0
        if isinstance(given, int):
            extra = max(0, given - len(self.names))
        else:
            places = [re.fullmatch(rf"{re.escape(self.rest)}_(\d+)", str(name)) for name in given]
            extra = sum(place is not None for place in places)
        return [*self.names, *(f"{self.rest}_{index}" for index in range(extra if self.rest else 0))]

    def by_name(self, inputs: Any) -> dict[str, Any]:
        """Inputs by the names of the parameters.

        Args:
            inputs: By name, in the order of the parameters, or a single one.

        Raises:
            ModelError: There is no such parameter, or there are too few of them.
        """
        if isinstance(inputs, Mapping):
            return self._known(inputs)
        values = inputs if isinstance(inputs, tuple | list) else (inputs,)
        names = self.arguments(len(values))
        if len(values) > len(names):
            raise ModelError(
                f"the data give {len(values)} inputs, but {self.owner}.forward takes {len(names)}: {', '.join(names)}"
            )
        return dict(zip(names, values, strict=False))

    def _known(self, inputs: Mapping[Any, Any]) -> dict[str, Any]:
        names = self.arguments(inputs)
        unknown = [name for name in inputs if name not in names]
        if not unknown:
            return {name: inputs[name] for name in names if name in inputs}
        text = f"the data name the inputs {', '.join(map(str, inputs))}, but {self.owner}.forward "
        if unknown[0] in self.keywords:
            raise ModelError(
                f"{text}takes {unknown[0]!r} by keyword only, and models are given their inputs by position; "
                f"{_wrap(unknown[0])}"
            )
        known = [*self.names, *([f"{self.rest}_0, {self.rest}_1, …"] if self.rest else [])]
        raise ModelError(f"{text}has no parameter {unknown[0]!r}; it has: {', '.join(known)}")


def shapes_for(module: torch.nn.Module, shapes: Sequence[Any]) -> tuple[Any, ...]:
    """``dynamic_shapes`` of ``torch.export`` from those of the arguments in order: what goes into ``*args`` is one."""
    kinds = [each.kind for each in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    before = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:before], *([tuple(shapes[before:])] if len(shapes) > before else []))


def _wrap(name: str) -> str:
    return f"drop the * before {name!r} in its forward, or give a module around it whose forward takes {name!r} so"


__all__ = ["Signature", "shapes_for"]
