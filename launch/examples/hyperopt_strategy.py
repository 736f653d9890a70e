"""A strategy of one's own: Hyperopt's TPE through the same ask and tell as the built-in samplers.

pip install hyperopt, then in the configuration:

    tuning:
      strategy: {name: hyperopt, module: hyperopt_strategy.py}
"""

from __future__ import annotations

from hyperopt import JOB_STATE_DONE, STATUS_FAIL, STATUS_OK, Trials, hp, tpe
from hyperopt.base import Domain

from distune.strategies.base import TuneStrategy
from distune.strategies.registry import strategy_registry
from distune.strategies.search_space import SearchSpace, Unseen
from distune.strategies.stage import Stage


@strategy_registry
class HyperoptTuneStrategy(TuneStrategy):
    """Minimises the objective; what does not meet the criterion counts as a failed trial."""

    settings = {"batch_size": "Configs judged in parallel (default: 4)."}
    tunes_parameters = True

    def next_tune_cfg(self):
        search = SearchSpace(self.space, fallback=True)
        unseen = Unseen(search)
        names = [parameter.name for parameter in search.parameters]
        space = {p.name: hp.choice(p.name, range(len(p.choices))) for p in search.parameters}
        domain, trials = Domain(lambda point: 0.0, space), Trials()
        while True:
            asked = []
            for _ in range(self.context.kwargs.get("batch_size", 4)):
                ids = trials.new_trial_ids(1)
                doc = tpe.suggest(ids, domain, trials, self.context.seed + ids[0])[0]
                candidate = unseen.take(tuple(int(doc["misc"]["vals"][name][0]) for name in names))
                if candidate is None:  # proposed before, or fp32 itself: take the next in order, so that it ends
                    found = unseen.following()
                    if found is None:
                        break
                    point, candidate = found
                    doc["misc"]["vals"] = {name: [index] for name, index in zip(names, point, strict=True)}
                asked.append((doc, candidate))
            if not asked:
                return
            result = yield Stage("hyperopt", [candidate for _, candidate in asked], use="best")
            judged = {trial.config.hash: trial for trial in result.trials}
            for doc, candidate in asked:
                trial = judged.get(candidate.config.hash)
                loss = self.context.score(trial) if trial is not None and trial.met else None
                doc["state"] = JOB_STATE_DONE
                doc["result"] = {"status": STATUS_FAIL} if loss is None else {"status": STATUS_OK, "loss": loss}
                trials.insert_trial_docs([doc])
            trials.refresh()
            if result.finished:
                return
