"""Datasets, transforms, filters and metrics: ``Name``, ``Name: argument`` or ``Name: {argument: value}``.

Names and arguments are checked against what is registered (``KnownNames``); user code is named ``module:name`` or
``file.py:name``. A name that 1.x had and distune has not is accepted in a fragment and refused in a complete file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import InstanceOf, WithJsonSchema

from distune.config.diagnostics import describe, did_you_mean
from distune.config.faults import Context, Fault, FaultError
from distune.config.job import ComponentSpec
from distune.config.known import Parameters
from distune.config.values import checked_in_context, reference, resolved
from distune.config.vocabulary import DATASETS, FILTERS, METRICS, PATH_ARGUMENTS, TENSORFLOW_DATASETS, TRANSFORMS
from distune.config.yaml_nodes import Empty, plain


@dataclass(frozen=True)
class Kind:
    """One kind of component.

    Attributes:
        name: In messages.
        known: Field of ``KnownNames``.
        of_1x: Names that 1.x had.
        scalar: The argument that ``Name: value`` stands for, by component name.
    """

    name: str
    known: Literal["datasets", "transforms", "filters", "metrics", "trackers"]
    of_1x: frozenset[str]
    scalar: Mapping[str, str]


DATASET = Kind("dataset", "datasets", DATASETS, {})
TRANSFORM = Kind("transform", "transforms", TRANSFORMS, {"Resize": "size", "CenterCrop": "size", "Cast": "dtype"})
FILTER = Kind("filter", "filters", FILTERS, {"LabelBalance": "size"})
TRACKER = Kind("tracker", "trackers", frozenset(), {})
METRIC = Kind("metric", "metrics", METRICS, {"topk": "k", "GLUE": "task", "ROC": "task", "mIOU": "num_classes"})


def parse_one(kind: Kind, value: Any, context: Context) -> ComponentSpec:
    """Exactly one component: a name, or a mapping of one name to its arguments.

    Raises:
        FaultError: Every fault of the name and the arguments.
    """
    if isinstance(value, str) and value:
        return _component(kind, value, Empty(), context)
    if isinstance(value, dict) and len(value) == 1:
        ((name, args),) = value.items()
        return _component(kind, name, args, context)
    if isinstance(value, dict) and value:
        names = list(value)
        raise FaultError(Fault(f"expected one {kind.name}, got {len(names)}: {', '.join(names)}", (names[1],), "key"))
    raise FaultError.of(f"expected a {kind.name}: its name, or 'Name: {{argument: value}}', got {describe(value)}")


def parse_many(kind: Kind, value: Any, context: Context) -> tuple[ComponentSpec, ...]:
    """Components in order: a mapping of names to arguments, or a list where one name occurs twice.

    Raises:
        FaultError: Every fault of every component.
    """
    parts: list[tuple[tuple[str | int, ...], Any]]
    if isinstance(value, dict):
        parts = [((), {name: args}) for name, args in value.items()]
    elif isinstance(value, list | tuple):
        parts = [((index,), item) for index, item in enumerate(value)]
    elif isinstance(value, str) and value:
        parts = [((), value)]
    else:
        raise FaultError.of(f"expected {kind.name}s, each 'Name: {{argument: value}}', got {describe(value)}")
    found: list[ComponentSpec] = []
    faults: list[Fault] = []
    for place, part in parts:
        try:
            found.append(parse_one(kind, part, context))
        except FaultError as error:
            faults += [Fault(f.message, (*place, *f.place), f.at, f.focus) for f in error.faults]
    if faults:
        raise FaultError(*faults)
    return tuple(found)


def _component(kind: Kind, name: str, args: Any, context: Context) -> ComponentSpec:
    if ":" in name:
        try:
            name_found = reference(name, context, attribute=True)
        except FaultError as error:
            raise FaultError(*(Fault(fault.message, (name,), "key") for fault in error.faults)) from None
        return ComponentSpec(name_found, _arguments(kind, name, args, None, context, registered=False))
    registered, parameters = _registered(kind, name, context)
    return ComponentSpec(registered, _arguments(kind, name, args, parameters, context, registered=True))


def _registered(kind: Kind, name: str, context: Context) -> tuple[str, Parameters]:
    known: Mapping[str, Parameters] = getattr(context.known, kind.known)
    if context.complete and name in TENSORFLOW_DATASETS and kind is DATASET:
        message = f"the dataset {name} needs TensorFlow, which distune does not use; convert the data and use Npz"
        raise FaultError(Fault(message, (name,), "key"))
    if not known:
        return name, None
    if name in known:
        return name, known[name]
    folded = {candidate.casefold(): candidate for candidate in known}
    if name.casefold() in folded:  # 1.x wrote ``dummy``
        return folded[name.casefold()], known[folded[name.casefold()]]
    if name in kind.of_1x:
        if not context.complete:
            return name, None
        message = f"the {kind.name} {name} of 1.x is not available in distune; available: {', '.join(sorted(known))}"
        raise FaultError(Fault(message, (name,), "key"))
    hint = did_you_mean(name, {*known, *kind.of_1x})
    message = f"unknown {kind.name} {name!r}{hint}; one of your own is named module:name or file.py:name"
    raise FaultError(Fault(message, (name,), "key"))


def _arguments(
    kind: Kind, name: str, args: Any, parameters: Parameters, context: Context, *, registered: bool
) -> dict[str, Any]:
    if not isinstance(args, dict):
        if name not in kind.scalar:
            raise FaultError(
                Fault(f"expected the arguments of {name} as keys and values, got {describe(args)}", (name,))
            )
        return {kind.scalar[name]: plain(args)}
    found: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, value in args.items():
        if parameters is not None and key not in parameters:
            hint = did_you_mean(key, parameters) or "; it takes none"
            faults.append(Fault(f"{kind.name} {name} has no argument {key!r}{hint}", (name, key), "key"))
        elif key in PATH_ARGUMENTS and isinstance(value, str):
            # A user's own component may take the word to mean something else than a file, or make the file itself.
            must_exist = registered and args.get("download") is not True
            try:
                found[key] = resolved(value, context, must_exist=must_exist)
            except FaultError as error:
                faults += [Fault(fault.message, (name, key)) for fault in error.faults]
        else:
            found[key] = plain(value)
    if faults:
        raise FaultError(*faults)
    return found


_JSON = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})
_JSON_MANY = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "array"}]})

Dataset = Annotated[InstanceOf[ComponentSpec], checked_in_context(lambda v, c: parse_one(DATASET, v, c)), _JSON]
Filter = Annotated[InstanceOf[ComponentSpec], checked_in_context(lambda v, c: parse_one(FILTER, v, c)), _JSON]
Metric = Annotated[InstanceOf[ComponentSpec], checked_in_context(lambda v, c: parse_one(METRIC, v, c)), _JSON]
Trackers = Annotated[
    tuple[InstanceOf[ComponentSpec], ...], checked_in_context(lambda v, c: parse_many(TRACKER, v, c)), _JSON_MANY
]
Transforms = Annotated[
    tuple[InstanceOf[ComponentSpec], ...], checked_in_context(lambda v, c: parse_many(TRANSFORM, v, c)), _JSON_MANY
]
