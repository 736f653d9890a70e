"""Objects from rank to rank over MPI: point-to-point, never blocking, of any size, and aware of ranks that die.

Only point-to-point after start-up, since collectives do not survive the loss of a rank (ULFM). An object is pickled;
a short one is one message, a long one is a length and then pieces, because counts in MPI end at 2**31.
"""

from __future__ import annotations

import os
import pickle
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distune.errors import MissingExtraError, TransportError

_LENGTH = struct.Struct("<Q")
_SHORT = 1 << 16
_PIECE = 32 << 20
_TAG = 77

_FIRST_PAUSE_S = 20e-6
_LAST_PAUSE_S = 10e-3
_SENDING_PAUSE_S = 0.5e-3
_PAUSE_SHARE = 0.02


class MasterLostError(TransportError):
    """Rank 0 is gone."""

    def __init__(self) -> None:
        super().__init__("rank 0 is gone; run the same command again to resume")


def end_job(communicator: Any, error: BaseException) -> None:
    """End the job because of ``error``, by ``Abort``; a rank that has lost rank 0 ends alone.

    Each rank notices that for itself, and where several call ``Abort`` at once the launcher of Open MPI 5.0 sometimes
    waits for ever when all have gone (6 of 92 runs; ended so, none of 148).
    """
    if isinstance(error, MasterLostError):
        os._exit(1)
    communicator.Abort(1)


class Backoff:
    """How long to sleep between polls: 2% of the time waited so far.

    So polling adds at most 2% to any wait, and an idle rank settles at a hundred polls a second, well below 1% of a
    core.
    """

    def __init__(self) -> None:
        self._since = time.monotonic()

    def reset(self) -> None:
        """Something happened."""
        self._since = time.monotonic()

    def pause(self, sending: bool) -> float:
        """Seconds to sleep now. ``sending``: large messages are under way, which progress only when MPI is called."""
        longest = _SENDING_PAUSE_S if sending else _LAST_PAUSE_S
        return min(max(_FIRST_PAUSE_S, _PAUSE_SHARE * (time.monotonic() - self._since)), longest)


@dataclass
class _Incoming:
    """A long object of which not all pieces are there."""

    data: bytearray
    filled: int = 0


@dataclass(slots=True)
class _Receive:
    """One message that is being received."""

    source: int
    request: Any
    buffer: bytearray | memoryview


class MpiLink:
    """One rank's end.

    Args:
        communicator: A communicator that nobody else uses (``mpi.connect``).
    """

    def __init__(self, communicator: Any) -> None:
        self._mpi = import_mpi()
        self._comm = communicator
        self._sending: list[tuple[int, Any, object]] = []  # destination, request, the buffer that it needs
        self._incoming: dict[int, _Incoming] = {}
        self._receiving: dict[int, _Receive] = {}  # by source; the messages of one source come one after the other
        self._status = self._mpi.Status()
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()
        self.lost: set[int] = set()
        """Ranks that have died. Without ULFM the launcher ends the job instead."""
        self.heard: dict[int, float] = {}
        """When something last came from a rank (``time.monotonic()``), a piece of a long object included."""

    @property
    def sending(self) -> bool:
        """Whether something that was sent is still under way."""
        return bool(self._sending)

    def send(self, rank: int, message: object) -> None:
        """Send to ``rank``; returns at once. To a rank that is lost nothing is sent."""
        if rank in self.lost:
            return
        body = pickle.dumps(message, protocol=5)
        head = _LENGTH.pack(len(body))
        if len(body) <= _SHORT:
            self._post(rank, head + body)
            return
        self._post(rank, head)
        with memoryview(body) as view:
            for start in range(0, len(body), _PIECE):
                self._post(rank, view[start : start + _PIECE])

    def receive(self) -> list[tuple[int, Any]]:
        """``(source, object)`` of everything that has arrived; also lets sends progress."""
        self._progress()
        arrived: list[tuple[int, Any]] = []
        for pending in list(self._receiving.values()):
            self._advance(pending, arrived)
        while True:
            try:
                receive = self._next()
            except self._mpi.Exception as error:
                if not self._note_failure(error):
                    raise
                continue
            if receive is None:
                break
            self._advance(receive, arrived)
        if self._receiving:
            self._note_lost()
        return arrived

    def drain(self, seconds: float) -> bool:
        """Wait until all that was sent has left, at most ``seconds``; says whether it has."""
        end = time.monotonic() + seconds
        while self._sending and time.monotonic() < end:
            self._progress()
            if self._sending:
                time.sleep(_SENDING_PAUSE_S)
        return not self._sending

    def _post(self, rank: int, data: bytes | memoryview) -> None:
        try:
            request = self._comm.Isend([data, self._mpi.BYTE], rank, _TAG)
        except self._mpi.Exception as error:
            if not self._note_failure(error):
                raise
            self.lost.add(rank)
            return
        self._sending.append((rank, request, data))

    def _progress(self) -> None:
        if not self._sending:
            return
        waiting: list[tuple[int, Any, object]] = []
        for entry in self._sending:
            rank, request, _ = entry
            try:
                if rank not in self.lost and not request.Test():
                    waiting.append(entry)
            except self._mpi.Exception as error:
                if not self._note_failure(error):
                    raise
        self._sending = waiting

    def _next(self) -> _Receive | None:
        """Start to receive the next message, where there is one.

        Never by a blocking receive: seen with Open MPI 5.0 and ULFM, that spins for ever where the sender ends between
        the probe and the receive.
        """
        if not self._comm.Iprobe(self._mpi.ANY_SOURCE, _TAG, self._status):
            return None
        if self._status.Get_source() in self._receiving and not self._probe_others():
            return None
        source: int = self._status.Get_source()
        count: int = self._status.Get_count(self._mpi.BYTE)
        self.heard[source] = time.monotonic()
        long = self._incoming.get(source)
        buffer = bytearray(count) if long is None else memoryview(long.data)[long.filled : long.filled + count]
        return _Receive(source, self._comm.Irecv([buffer, self._mpi.BYTE], source, _TAG), buffer)

    def _probe_others(self) -> bool:
        """Look for a message of a rank from which none is being received.

        One by one: a rank that stands still in the middle of a long object hides what the others say from a probe of
        any source.
        """
        return any(
            self._comm.Iprobe(source, _TAG, self._status)
            for source in range(self.size)
            if source not in self._receiving and source not in self.lost
        )

    def _advance(self, receive: _Receive, arrived: list[tuple[int, Any]]) -> None:
        """Go on with a message that is being received; adds to ``arrived`` the object that it completes."""
        source = receive.source
        try:
            done = receive.request.Test()
        except self._mpi.Exception as error:
            if not self._note_failure(error):
                raise
            self._forget(source)
            return
        if not done:
            self._receiving[source] = receive
            return
        self._receiving.pop(source, None)
        # What a dead rank said last is taken off the queue, but may be the end of an object whose beginning is lost.
        found = self._complete(receive) if source not in self.lost else None
        if found is not None:
            arrived.append((source, pickle.loads(found)))

    def _complete(self, receive: _Receive) -> bytearray | memoryview | None:
        """Take in a message that is all there; the body of the object that it completes."""
        source, message = receive.source, receive.buffer
        long = self._incoming.get(source)
        if long is not None:
            long.filled += len(message)
            if long.filled < len(long.data):
                return None
            del self._incoming[source]
            return long.data
        (length,) = _LENGTH.unpack_from(message)
        if len(message) == _LENGTH.size:
            self._incoming[source] = _Incoming(bytearray(length))
            return None
        return memoryview(message)[_LENGTH.size :]

    def _note_failure(self, error: Any) -> bool:
        """Whether ``error`` tells that ranks have died (ULFM); adds them to ``lost``."""
        mpi = self._mpi
        kinds = [getattr(mpi, name, None) for name in ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING", "ERR_REVOKED")]
        if error.Get_error_class() not in [kind for kind in kinds if kind is not None]:
            return False
        self._note_lost()
        return True

    def _note_lost(self) -> None:
        """Add the ranks that have died to ``lost``, and forget what was to come from them."""
        if not survives_losses():
            return
        failed, everyone = self._comm.Get_failed(), self._comm.Get_group()
        ranks = failed.Translate_ranks(list(range(failed.Get_size())), everyone)
        for rank in ranks:
            self._forget(rank)
        self._comm.Ack_failed(len(ranks))  # from here on receiving from any source works again
        failed.Free()
        everyone.Free()

    def _forget(self, rank: int) -> None:
        """Give up what was to come from a rank that has died."""
        self.lost.add(rank)
        self._incoming.pop(rank, None)
        self._receiving.pop(rank, None)


def survives_losses(environment: Mapping[str, str] | None = None) -> bool:
    """Whether this job goes on when it loses ranks: Open MPI with ULFM, started with ``--with-ft ulfm``."""
    variables = os.environ if environment is None else environment
    return variables.get("OMPI_MCA_mpi_ft_enable", "").lower() in ("1", "true", "yes")


def import_mpi() -> Any:
    """The ``MPI`` module of mpi4py; importing it initialises MPI.

    Where the job may lose ranks they end without ``MPI_Finalize``: seen with Open MPI 5.0, it can wait for a dead rank
    for ever. The launcher takes such an end for what it is, with its exit code, and cleans up after it.

    Raises:
        MissingExtraError: mpi4py is not installed.
    """
    try:
        import mpi4py

        if survives_losses():
            mpi4py.rc.finalize = False  # has no effect where the user's program has imported MPI before
        from mpi4py import MPI
    except ImportError as error:
        raise MissingExtraError("mpi4py", "mpi", "where mpirun starts the ranks") from error
    return MPI
