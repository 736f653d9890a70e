"""The model as a user's ``eval_func`` gets it: a callable."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from distune.backends.base import InputInfo, RunnableModel
from distune.data.batch import to_array
from distune.errors import UserCodeError
from distune.evaluation.feeds import to_feed
from distune.evaluation.finite import Watch


class CallableModel:
    """Runs a model on arrays or tensors, one batch a call.

    ::

        model(images)                                     # positional, in the order of the model's inputs
        model(input_ids=ids, attention_mask=mask)         # or by input name
        model({"input_ids": ids, "attention_mask": mask})

    The result is an ndarray where the model has one output, else a list of them in the model's order. Whatever else
    is asked of the object comes from the framework's own model (``onnx.ModelProto``, ``torch.nn.Module``), so that
    functions written for that keep working.

    Args:
        watch: Is shown what the model is given and answers.

    Attributes:
        inputs: Names, dtypes and shapes of the model's inputs.
        native: The framework's own object.
        seconds: Time spent in inference so far.
    """

    def __init__(self, model: RunnableModel, inputs: Sequence[InputInfo], watch: Watch | None = None) -> None:
        self._model = model
        self._watch = watch
        self.inputs = tuple(inputs)
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> NDArray[Any] | list[NDArray[Any]]:
        """Run one batch.

        Raises:
            DataError: The arrays do not fit the model's inputs.
        """
        if args and kwargs:
            raise UserCodeError("call the model with arrays in order or by input name, not both")
        given: Any = kwargs or (args[0] if len(args) == 1 else args)
        if isinstance(given, Mapping):
            given = {name: to_array(value) for name, value in given.items()}
        elif isinstance(given, tuple) or (isinstance(given, list) and len(self.inputs) > 1):
            given = tuple(to_array(value) for value in given)
        else:
            given = to_array(given)
        feed = to_feed(given, self.inputs)
        start = time.perf_counter()
        outputs = list(self._model.predict(feed))
        self.seconds += time.perf_counter() - start
        if self._watch is not None:
            self._watch.take(feed, outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    predict = __call__

    @property
    def native(self) -> Any:
        """The framework's own object."""
        return self._model.native

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_model", "_watch"):
            raise AttributeError(name)
        return getattr(self._model.native, name)
