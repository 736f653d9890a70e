"""Where a trial is judged on another model than the one that is deployed, what meets is judged again as it is deployed.

A backend may judge trials on a form of the model that is quick to make (a reference graph in eager mode) and deploy a
compiled one, whose numbers differ a little. No trial meets by the first alone: its accuracy, its verdict and everything
that is decided from them are those of the second, on the complete evaluation set.
"""

from __future__ import annotations

from dataclasses import replace

from distune.engine import events
from distune.strategies.stage import Trial
from distune.trial.messages import Judge


class Confirmations:
    """Trials that wait for the verdict on their deployed model.

    Args:
        needed: The backend's judged and deployed models differ.
        listener: Told where the second verdict is another.
    """

    def __init__(self, needed: bool, listener: events.Listener) -> None:
        self._needed = needed
        self._listener = listener
        self._waiting: dict[int, Trial] = {}

    def needs(self, task_id: int, trial: Trial) -> bool:
        """Whether ``trial``, which task ``task_id`` has judged, must be judged again before it counts."""
        return self._needed and task_id not in self._waiting and trial.met

    def request(self, first: Judge) -> Judge:
        """The second judgement of what ``first`` was about."""
        return replace(first, accuracy="exact", deployed=True, floor=None, base="", decisive="")

    def begin(self, task_id: int, trial: Trial) -> None:
        """Task ``task_id`` judges ``trial`` again."""
        self._waiting[task_id] = trial

    def settle(self, task_id: int, trial: Trial) -> Trial:
        """The trial that counts: ``trial``, joined with the first judgement where it is a second one."""
        first = self._waiting.pop(task_id, None)
        if first is None:
            return trial
        trial = replace(trial, start_s=first.start_s, attempts=max(first.attempts, trial.attempts))
        if trial.met:
            return trial
        found = "failed" if trial.accuracy is None else f"scores {trial.accuracy:.6g}, which does not meet"
        remark = f"judged {first.accuracy:.6g}, but as deployed it {found}"
        self._listener.on(events.Warned(f"{trial.label or trial.config.hash}: {remark}", trial.rank, trial.host))
        return replace(trial, warnings=(*trial.warnings, remark))
