"""The append-only record of a run, the workspace that holds it, and what is needed to resume from it."""

from distune.journal.journal import Journal, read_records
from distune.journal.record import Record
from distune.journal.workspace import Workspace

__all__ = ["Journal", "Record", "Workspace", "read_records"]
