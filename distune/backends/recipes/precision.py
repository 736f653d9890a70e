"""Recipes that keep ops in fp32: those that every framework has, and what a tuning config means under them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from distune.errors import TrialError
from distune.space.capability import OpInfo, Recipe
from distune.space.op_config import TuningConfig
from distune.space.recipes import ops_kept_in_fp32


def first_and_last(ops: Sequence[OpInfo], heavy: Collection[str]) -> Iterator[Recipe]:
    """The recipes that keep the first and the last op with much arithmetic in fp32; none where no op is of that kind.

    Args:
        ops: In graph order.
        heavy: Op types that are meant.
    """
    found = [op for op in ops if op.op_type in heavy]
    if not found:
        return
    for position, anchor in (("first", found[0]), ("last", found[-1])):
        yield Recipe(
            name=f"{position}_conv_or_matmul_quantization",
            default=True,
            choices=(True, False),
            fp32_ops=tuple(op.name for op in ops if op.group == anchor.group),
        )


def effective(
    config: TuningConfig, recipes: Mapping[str, Recipe], elsewhere: Collection[str], backend: str
) -> TuningConfig:
    """``config`` with what its recipes turn to fp32 in fp32.

    Args:
        recipes: What the model knows, by name.
        elsewhere: Recipes of another approach: a saved config is applied without its approach.
        backend: Its name, for the message.

    Raises:
        TrialError: The config has a recipe that the model does not know.
    """
    unknown = [name for name, _ in config.recipes if name not in recipes and name not in elsewhere]
    if unknown:
        raise TrialError(f"the {backend} backend has no recipe {unknown[0]!r} for this model")
    changes = ops_kept_in_fp32(config, recipes)
    return config.with_ops(changes) if changes else config


__all__ = ["effective", "first_and_last"]
