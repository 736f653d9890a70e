"""The section ``quantization.train``: how quantization-aware training goes.

::

    train:
      end_epoch: 3
      optimizer:
        SGD: {learning_rate: 0.01, momentum: 0.9}
      criterion:
        CrossEntropyLoss: {label_smoothing: 0.1}
      dataloader:
        batch_size: 50
        shuffle: true
        dataset:
          Npz: {path: train.npz, inputs: images, label: labels}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, InstanceOf

from distune.config.diagnostics import describe, did_you_mean
from distune.config.faults import Context, Fault, FaultError, Section
from distune.config.job import ComponentSpec
from distune.config.schema_data import NO_EFFECT, Dataloader, Postprocess
from distune.config.values import EvalFunc, Text, Whole, checked_in_context, reference
from distune.config.vocabulary import CRITERIA, OPTIMIZERS
from distune.config.yaml_nodes import Empty, plain

_ALIASES = {"learning_rate": "lr"}
_DROPPED = {"from_logits": True}
"""Arguments that 1.x has for other frameworks, with the value that torch means anyway."""


def _component(what: str, known: Mapping[str, frozenset[str]]) -> Any:
    """Parser of one optimizer or criterion with torch's arguments, or of the user's own."""

    def parse(value: Any, context: Context) -> ComponentSpec:
        if isinstance(value, ComponentSpec):
            return value
        if isinstance(value, str) and value:
            name, args = value, Empty()
        elif isinstance(value, dict) and len(value) == 1:
            ((name, args),) = value.items()
        else:
            raise FaultError.of(f"expected one {what}: its name, or 'Name: {{argument: value}}', got {describe(value)}")
        if not isinstance(args, dict):
            message = f"expected the arguments of {name} as keys and values, got {describe(args)}"
            raise FaultError(Fault(message, (name,)))
        if ":" in name:
            try:
                return ComponentSpec(reference(name, context, attribute=True), {k: plain(v) for k, v in args.items()})
            except FaultError as error:
                raise FaultError(*(Fault(fault.message, (name,), "key") for fault in error.faults)) from None
        if name not in known:
            hint = did_you_mean(name, known)
            message = f"unknown {what} {name!r}{hint}; one of your own is named module:name or file.py:name"
            raise FaultError(Fault(message, (name,), "key"))
        return ComponentSpec(name, _arguments(what, name, args, known[name]))

    return parse


def _arguments(what: str, name: str, args: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, raw in args.items():
        own, value = _ALIASES.get(key, key), _number(plain(raw))
        if key in _DROPPED and value is _DROPPED[key]:
            continue
        if own not in known:
            faults.append(Fault(f"{what} {name} has no argument {key!r}{did_you_mean(key, known)}", (name, key), "key"))
        elif own in found:
            faults.append(Fault(f"{key!r} says the same as {own!r}; keep one", (name, key), "key"))
        else:
            found[own] = value
    if faults:
        raise FaultError(*faults)
    return found


def _number(value: Any) -> Any:
    """YAML 1.1 reads ``1e-2`` as text; no argument with a word for a value looks like a number."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


class Train(Section):
    """How the model is trained while it is quantized."""

    train_func: EvalFunc | None = Field(
        None, description="module:name or file.py:name: gets the prepared module and trains it, instead of all below."
    )
    optimizer: Annotated[InstanceOf[ComponentSpec] | None, checked_in_context(_component("optimizer", OPTIMIZERS))] = (
        Field(None, description="The optimizer with torch's arguments (learning_rate is lr).")
    )
    criterion: Annotated[InstanceOf[ComponentSpec], checked_in_context(_component("criterion", CRITERIA))] = Field(
        ComponentSpec("CrossEntropyLoss"), description="The loss with torch's arguments."
    )
    dataloader: Dataloader | None = Field(None, description="The training data.")
    postprocess: Postprocess = Field(
        default_factory=lambda: Postprocess.model_construct(), description="What happens to (outputs, labels) first."
    )
    epoch: Whole | None = Field(None, ge=1, description="Epochs; the same as end_epoch where start_epoch is 0.")
    start_epoch: Whole = Field(0, ge=0, description="Number of the first epoch.")
    end_epoch: Whole | None = Field(None, ge=1, description="Number of the epoch at which training ends.")
    iteration: Whole = Field(-1, ge=-1, description="Batches of one epoch at most; -1 takes all.")
    frequency: Whole | None = Field(
        None, ge=1, description="1.x.", json_schema_extra={NO_EFFECT: "it is the step of a pruner's schedule"}
    )
    execution_mode: Text | None = Field(
        None, description="1.x.", json_schema_extra={NO_EFFECT: "it is a choice of TensorFlow's"}
    )

    @classmethod
    def refused(cls) -> Mapping[str, str]:
        return {
            "hostfile": "one trial trains on one rank and trials are spread over the ranks; start distune under mpirun "
            "with that hostfile and take this out"
        }

    @classmethod
    def check_keys(cls, data: Mapping[str, Any], context: Context) -> Iterator[Fault]:
        if "epoch" in data and "end_epoch" in data:
            yield Fault("'epoch' and 'end_epoch' say the same; keep one", ("epoch",), "key")
        if data.get("iteration") == 0:
            yield Fault("an epoch of 0 batches trains nothing; give -1 for all batches", ("iteration",))
        if data.get("train_func") is not None:
            for key in ("optimizer", "criterion", "dataloader", "epoch", "end_epoch", "iteration"):
                if key in data:
                    yield Fault(f"train_func does the training itself; drop {key!r}", (key,), "key")
            return
        for key in ("optimizer", "dataloader"):
            if data.get(key) is None:
                yield Fault(f"training needs '{key}' (or a 'train_func' of your own)", (), "key")

    def check_values(self, context: Context) -> Iterator[Fault]:
        if self.epochs <= self.start_epoch:
            key = "end_epoch" if self.end_epoch is not None else "start_epoch"
            message = f"no epoch is trained: the last one, {self.epochs}, must be above start_epoch, {self.start_epoch}"
            yield Fault(message, (key,))
        if self.optimizer is not None and self.optimizer.name == "SGD" and "lr" not in self.optimizer.args:
            yield Fault("SGD needs a learning_rate", ("optimizer",))

    @property
    def epochs(self) -> int:
        """Number of the epoch at which training ends."""
        return self.end_epoch or (self.start_epoch + (self.epoch or 1))


__all__ = ["Train"]
