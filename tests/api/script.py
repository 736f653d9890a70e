"""A user's script with several ``fit`` calls, run by ``test_ranks`` under a real mpirun."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from distune import quantization
from distune.config import AccuracyCriterion, PostTrainingQuantConfig, TuningCriterion, set_workspace
from distune.distributed.topology import launched_rank
from distune.errors import DistuneError
from tests.api.small import Batches, model, samples

OWN = str(launched_rank())
LOCK = threading.Lock()


def score(given: Any) -> float:
    """Defined in ``__main__``: travels by value."""
    images, labels = samples()
    return float((given(images).argmax(1) == labels).mean())


def score_here(given: Any) -> float:
    """Holds a lock: runs in the rank that has it, which leaves a note."""
    with LOCK:
        Path(sys.argv[1], f"judged-on-{OWN}").touch()
        return score(given)


def fails(given: Any) -> float:
    raise ValueError("on purpose")


def conf(**given: Any) -> PostTrainingQuantConfig:
    return PostTrainingQuantConfig(quant_level=1, accuracy_criterion=AccuracyCriterion(tolerable_loss=0.1), **given)


def say(what: str, value: Any) -> None:
    """One line, which no other rank can cut in two."""
    os.write(1, (json.dumps([int(OWN), what, value]) + "\n").encode())


set_workspace(Path(sys.argv[1], "ws"))
data = {"calib_dataloader": Batches(), "quiet": True}
first = quantization.fit(model(), conf(), eval_func=score, **data)
say("first", [first.outcome, first.accuracy, first.result.ranks, first.model is not None, bool(first)])
say("saved", len(first.save(Path(sys.argv[1], "int8.onnx"))))
every = conf(tuning_criterion=TuningCriterion(timeout=600, max_trials=4))
second = quantization.fit(model(), every, eval_func=score_here, model_on_all_ranks=True, **data)
say("second", [second.outcome, [trial.config.hash for trial in second.trials], second.model is not None])
for wrong in (fails, 3):
    try:
        quantization.fit(model(), conf(), eval_func=wrong, **data)  # type: ignore[arg-type]
    except DistuneError as error:
        say("error", [type(error).__name__, "on purpose" in str(error)])
if "--raise-on-0" in sys.argv and OWN == "0":
    raise RuntimeError("between two fits")
if "--raise-on-0" in sys.argv:
    quantization.fit(model(), conf(), eval_func=score, **data)
