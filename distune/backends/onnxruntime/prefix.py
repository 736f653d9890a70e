"""Models that begin alike: what they compute alike is computed once, and each runs only from where it differs.

In a stage that changes one group of ops at a time, all that comes before the group is the same in every model of the
stage and in the config that they start from, the base. So the base's tensors at some cuts are kept for every batch, and
a model runs from the last cut before its change. No number is different for it:

* cuts are tensors of integers between groups of ops (see ``cuts``);
* a model takes from a cut only if it computes that tensor by the same nodes and constants as the base;
* and only after it has run a batch as a whole and from the cut, with the same bits in every output.

Else it runs as a whole, as it does for batches that there was no room to keep. What runs from a cut is told of the
tensor's dimensions what ONNX Runtime infers of them in the base, neither more nor less: so it gets the kernels that the
whole has, for batches of other sizes, too. Where nothing can be inferred, batches of another size run as a whole. The
ranks of a node compute and keep the tensors together (see ``prefix_store``).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    NotImplemented,
    RuntimeException,
)

from distune.backends.base import Feed, Outputs
from distune.backends.node_folder import shared_folder
from distune.backends.onnxruntime.cuts import Cut, computed_alike, find_cuts, part, spread, value_of, worth_most
from distune.backends.onnxruntime.prefix_store import PrefixStore, batch_name
from distune.backends.onnxruntime.session import create_session
from distune.errors import ModelError

_REFUSALS = (Fail, InvalidArgument, InvalidGraph, NotImplemented, RuntimeException)

_TRIED = 16
"""Cuts that are chosen from, at most."""

_TIMED = 5
"""Of these, how many are timed: each takes a session. What running from the others takes lies between."""

_FEW = 8
"""Rows that cuts are tried and proved on, at least; else an eighth of the batch."""

Tensors = Mapping[str, NDArray[Any]]


class SharedPrefix:
    """The base's tensors at cuts, by batch.

    Args:
        base: The quantized model that the others differ from.
        threads: Intra-op threads.
        samples: How many there are to keep tensors of.
        memory_limit: Bytes that they may take on this node.

    Attributes:
        problem: Why nothing can be kept (such as a full disk); everything runs as a whole then.
    """

    def __init__(self, base: onnx.ModelProto, threads: int, samples: int, memory_limit: int) -> None:
        self.base = base
        self.threads = threads
        self._samples = samples
        self._limit = memory_limit
        self._cuts = find_cuts(base)
        self._session: ort.InferenceSession | None = None
        self._names: dict[Hashable, str] = {}
        self._kept: set[Hashable] = set()
        self._has_room, self._is_begun, self._is_filled = True, False, False
        self._store: PrefixStore | None = None
        self.problem = ""
        identity = hashlib.sha256(f"{threads}:{samples}:{ort.__version__}:".encode())
        identity.update(base.SerializeToString(deterministic=True))
        with self._without_fail():
            self._store = PrefixStore(identity.hexdigest()[:32], memory_limit)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """Where the graph may be cut, in its order; chosen among all when the first batch is run."""
        return tuple(self._cuts)

    def clear(self) -> None:
        """Forget everything: models that are still there run as a whole from now on."""
        self._kept.clear()
        self._cuts, self._session, self._has_room = [], None, False
        if self._store is not None:
            self._store.close()
            self._store = None

    def last_cut(self, model: onnx.ModelProto, feed: Feed) -> Cut | None:
        """Where ``model`` can be cut last; ``None`` where it computes nothing at any cut as the base does."""
        self._begin(feed)
        alike = computed_alike(self.base, model, {cut.tensor for cut in self._cuts})
        return next((cut for cut in reversed(self._cuts) if cut.tensor in alike), None)

    def runs_from(self, model: onnx.ModelProto, cut: Cut, tensor: NDArray[Any]) -> ort.InferenceSession | None:
        """Runs ``model`` from ``cut`` on; ``None`` where it needs more than that tensor, given as an example."""
        return None if self._session is None else _suffix_session(model, cut, tensor, self._session, self.threads)

    def distrust(self, cut: Cut) -> None:
        """Never use ``cut`` again: a model gave other numbers from there."""
        self._cuts = [other for other in self._cuts if other != cut]

    def fill(self, batches: Iterable[tuple[Hashable, Feed]]) -> None:
        """Have the base's tensors for those batches, once; the ranks of a node that do so at once share the work."""
        if self._is_filled:
            return
        self._is_filled = True
        for key, feed in batches:
            self._begin(feed)
            if not self._cuts or not self._has_room:
                return
            self._try_to_keep(key, feed)

    def tensor(self, key: Hashable, feed: Feed, cut: Cut) -> NDArray[Any] | None:
        """The base's tensor at ``cut`` for the batch of that key.

        ``None`` where there was no room for it, and while another rank computes it.
        """
        if self._try_to_keep(key, feed) and self._session is not None and self._store is not None:
            names = [output.name for output in self._session.get_outputs()]
            with self._without_fail():
                return self._store.read(self._names[key], names.index(cut.tensor))
        return None

    def _try_to_keep(self, key: Hashable, feed: Feed) -> bool:
        """Compute the tensors of a batch where nobody has begun to, and say whether they are kept by now."""
        if self._session is None or self._store is None:
            return False
        if key not in self._kept:
            if key not in self._names:
                self._names[key] = batch_name(feed)
            name = self._names[key]
            with self._without_fail(), suppress(*_REFUSALS):
                if not self._store.has(name) and self._has_room and self._store.claim(name):
                    self._has_room = self._store.write(name, _run(self._session, feed))
                if self._store.has(name):
                    self._kept.add(key)
        return key in self._kept

    @contextmanager
    def _without_fail(self) -> Iterator[None]:
        """What cannot be kept is computed again: it takes time, and changes nothing."""
        try:
            yield
        except (OSError, ModelError) as error:
            self.clear()
            self.problem = (
                f"what trials share could not be kept in {shared_folder()} ({error}), so each runs as a whole: make "
                "room there or set TMPDIR to a folder with room"
            )

    def _begin(self, feed: Feed) -> None:
        """Choose the cuts, or take those that another rank of the node has chosen."""
        if self._is_begun or self._store is None:
            return
        self._is_begun = True
        tried, self._cuts = spread(self._cuts, _TRIED), []
        chosen: list[Cut] = []
        with self._without_fail(), suppress(*_REFUSALS):  # such as a batch of a size that a Reshape inside has fixed
            names = self._store.agree(lambda: [cut.tensor for cut in self._worth_keeping(tried, feed)])
            chosen = [cut for cut in tried if cut.tensor in names]
            self._session = self._up_to(chosen)
        self._cuts = [] if self._session is None else chosen

    def _worth_keeping(self, tried: list[Cut], feed: Feed) -> list[Cut]:
        """The cuts that are worth their memory: by a few rows, which tell sizes and what is saved."""
        up_to_all, whole = self._up_to(tried), session_of(self.base, self.threads)
        few = _first_rows(self.base, feed)
        rows = _rows(few)
        if up_to_all is None or whole is None or not rows:
            return []
        found = _run(up_to_all, few)
        sizes = {name: array.nbytes * self._samples // rows for name, array in found.items()}
        whole_s = _seconds(whole, few)
        seconds = {0: whole_s, max(cut.ops_before for cut in tried) + 1: 0.0}
        for cut in spread(tried, _TIMED):
            rest = _suffix_session(self.base, cut, found[cut.tensor], up_to_all, self.threads)
            if rest is not None:
                seconds[cut.ops_before] = _seconds(rest, {cut.tensor: found[cut.tensor]})
        places = sorted(seconds)
        costs = {
            cut.tensor: float(np.interp(cut.ops_before, places, [seconds[place] for place in places])) for cut in tried
        }
        return worth_most(tried, sizes, costs, whole_s, self._limit)

    def _up_to(self, cuts: list[Cut]) -> ort.InferenceSession | None:
        model = part(self.base, list(self.base.graph.input), [value_of(cut) for cut in cuts]) if cuts else None
        return None if model is None else session_of(model, self.threads)


class Suffix:
    """Runs one model from the last cut before what it changes.

    Args:
        shared: Of the base.
        model: The quantized model.
    """

    def __init__(self, shared: SharedPrefix, model: onnx.ModelProto) -> None:
        self._shared = shared
        self._model: onnx.ModelProto | None = model
        self._proved: tuple[Cut, ort.InferenceSession] | None = None

    @property
    def cut(self) -> Cut | None:
        """Where the model is cut, once that was found and proved."""
        return None if self._proved is None else self._proved[0]

    @property
    def warnings(self) -> tuple[str, ...]:
        """For the user."""
        return (self._shared.problem,) if self._shared.problem else ()

    def fill(self, batches: Iterable[tuple[Hashable, Feed]]) -> None:
        """Have what the base leaves at the cuts for all these batches."""
        self._shared.fill(batches)

    def predict(self, key: Hashable, feed: Feed, whole: Callable[[Feed], Outputs]) -> Outputs:
        """The model's outputs for the batch of that key.

        Args:
            whole: Runs the complete model.
        """
        if not _rows(feed):  # it would prove nothing
            return whole(feed)
        model, self._model = self._model, None
        if model is not None:
            self._proved = self._prove(model, key, feed, whole)
        tensor = None if self._proved is None else self._shared.tensor(key, feed, self._proved[0])
        if self._proved is None or tensor is None:
            return whole(feed)
        cut, session = self._proved
        try:
            outputs: Outputs = session.run(None, {cut.tensor: tensor})
        except _REFUSALS:  # such as a tensor of another shape than the session was made for
            return whole(feed)
        return outputs

    def _prove(
        self, model: onnx.ModelProto, key: Hashable, feed: Feed, whole: Callable[[Feed], Outputs]
    ) -> tuple[Cut, ort.InferenceSession] | None:
        """The last cut before what ``model`` changes, and what runs from there, if it gives what the whole gives."""
        cut = self._shared.last_cut(model, feed)
        tensor = None if cut is None else self._shared.tensor(key, feed, cut)
        if cut is None or tensor is None:
            return None
        session = self._shared.runs_from(model, cut, tensor)
        if session is None:
            return None
        few = _first_rows(model, feed)
        if len(tensor) == _rows(feed):
            tensor = tensor[: _rows(few)]
        else:
            few = feed
        try:
            if all(map(_same_bits, session.run(None, {cut.tensor: tensor}), whole(few))):
                return cut, session
        except _REFUSALS:
            return None
        self._shared.distrust(cut)
        return None


def _suffix_session(
    model: onnx.ModelProto, cut: Cut, tensor: NDArray[Any], prefix: ort.InferenceSession, threads: int
) -> ort.InferenceSession | None:
    """Runs ``model`` from ``cut`` on; ``None`` where it needs more than that tensor.

    Args:
        tensor: An example. Where its rank is not known beforehand, the input has its shape, but for the batch.
        prefix: Has the tensor as an output, with what is known of its dimensions.
    """
    known = next(output.shape for output in prefix.get_outputs() if output.name == cut.tensor)
    dims = known if len(known) == tensor.ndim else ["distune_batch", *tensor.shape[1:]]
    rest = part(model, [value_of(cut, dims)], list(model.graph.output))
    return None if rest is None else session_of(rest, threads)


def session_of(model: onnx.ModelProto, threads: int) -> ort.InferenceSession | None:
    """A session of a part of a graph; ``None`` where ONNX Runtime refuses what it accepts as a whole."""
    try:
        return create_session(model, threads)
    except _REFUSALS:
        return None


def _run(session: ort.InferenceSession, feed: Feed) -> Tensors:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feed)), strict=True))


def _seconds(session: ort.InferenceSession, feed: Feed) -> float:
    """Of one run; the second one of two."""
    session.run(None, dict(feed))
    start = time.perf_counter()
    session.run(None, dict(feed))
    return time.perf_counter() - start


def _first_rows(model: onnx.ModelProto, feed: Feed) -> Feed:
    """The first rows of a batch; all of them where the model has a batch of a fixed size."""
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    if any(not shapes[name] or shapes[name][0].HasField("dim_value") for name in feed):
        return feed
    rows = _rows(feed)
    return {name: array[: max(_FEW, rows // 8)] for name, array in feed.items()}


def _rows(feed: Feed) -> int:
    """How many rows a batch has: the length of the first input that is no scalar."""
    return next((len(array) for array in feed.values() if array.ndim), 1)


def _same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
