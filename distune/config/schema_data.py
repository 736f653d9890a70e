"""What every section that reads data has in common: dataloaders and postprocessing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distune.config.components import Dataset, Filter, Transforms
from distune.config.faults import Section
from distune.config.values import Flag, Whole

NO_EFFECT = "no_effect"
"""Key of a field's extra: why the field is accepted and does nothing."""


class BatchSettings(Section):
    """What every dataloader has, without its data."""

    batch_size: Whole = Field(1, ge=1, description="Samples of one batch.")
    last_batch: Literal["rollover", "discard"] = Field(
        "rollover", description="Whether a shorter last batch is kept (rollover) or dropped (discard)."
    )
    transform: Transforms = Field((), description="Transforms of a sample, in order.")
    filter: Filter | None = Field(None, description="Which samples are taken.")
    shuffle: Flag = Field(False, description="Whether the samples are shuffled, with the run's seed.")
    distributed: Flag = Field(
        False,
        description="1.x: split of the evaluation over Horovod.",
        json_schema_extra={NO_EFFECT: "trials are spread over the ranks, a dataloader is not split"},
    )


class Dataloader(BatchSettings):
    """Where samples come from and how they become batches."""

    dataset: Dataset = Field(description="Name of the dataset, with its arguments.")


class Postprocess(Section):
    """What happens to the outputs before the metric sees them."""

    transform: Transforms = Field((), description="Transforms of (outputs, labels), in order.")


__all__ = ["NO_EFFECT", "BatchSettings", "Dataloader", "Postprocess"]
