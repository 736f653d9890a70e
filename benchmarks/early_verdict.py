"""Early verdicts and decisive ranking on the CIFAR models: how much of the evaluation set they need, and what it costs.

Every asset is quantized by a number of real configs (the default one, op-type-wise ones, and the default one with each
group of ops alone in fp32), and the outputs of each for every sample are kept. From those, ``--configs`` further
configs are resampled: each sample has the outputs of a real one (its error enlarged in every second of them) or those
of fp32, so that drops of all sizes occur. Each resampled config is judged early by the tuner's own evaluator, in the
order that fp32's margins give, in a random order, and in full. An early verdict that is not that of the full evaluation
is wrong.

Ranking: the groups of ops by what their fallback gains over the default config, on all samples and on the decisive ones
(those of the smallest margins of the default config), as Kendall's tau-b; over all groups, near-ties included, and over
those that matter: whose gain is at least twice its standard error (of the samples that flipped one way and the other).
Few matter, and several of them gain exactly the same: tau-b counts it as a fault that the shift of the logits tells
those apart, so over those that matter it is given as well without the pairs that the full ranking leaves open (Somers'
d). And the share of the pairs of groups which the full ranking tells apart, by twice the standard error of their
difference, that the decisive one puts in the same order. As yardsticks, the tau where fp32's margins choose the
samples, and that of full rankings on two halves of the samples.

    DISTUNE_ASSETS=... python benchmarks/early_verdict.py [--only NAME] [--rows 1000] [--keep FOLDER] [--json FILE]

The exit code is 1 where a verdict is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from host import host
from numpy.typing import NDArray

from distune.backends.base import RunnableModel

if TYPE_CHECKING:
    from distune.evaluation.accuracy import Evaluator

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("resnet20", "resnet32", "mbv3", "mobilenetv1")
LIMIT = "evaluation.accuracy.dataloader.dataset.Npz.limit"
OP_TYPE_WISE = 4
TOLERANCE = 0.01
ENLARGED = 30.0
"""What a real config's error is multiplied by at most."""

DROPS = (0.0, 0.005, 0.01, 0.017, 0.03, 0.05, 0.1, 1.0)
"""Edges of the bins of true drops, as shares of fp32's accuracy."""


@dataclass(frozen=True)
class Bin:
    """Resampled configs whose accuracy drops by ``low`` to ``high`` of fp32's.

    Attributes:
        ordered, shuffled: Mean share of the samples that were seen: in the run's order, in a random one.
    """

    low: float
    high: float
    configs: int
    ordered: float
    shuffled: float


@dataclass(frozen=True)
class Ranking:
    """Kendall's tau-b between the full and the decisive ranking of the groups of ops.

    Attributes:
        share: Share of the samples that the decisive ranking saw of each group; the config that the groups differ from
            is scored in full once more.
        mattering: Groups whose gain is at least twice its standard error.
        order_mattering: Tau over their pairs of unequal gain.
        pairs: Pairs of groups that differ by at least twice the standard error of their difference.
        pairs_kept: Share of them that the decisive ranking puts in the same order.
        error: Samples by which a gain is off, at most.
        tau_fp32: Where fp32's margins choose the samples.
        tau_half: Between the full rankings on even and odd samples, over all groups.
        best_is_best: The decisive ranking puts a group in front that has the largest gain, or cannot be told from it.
    """

    share: float
    groups: int
    tau: float
    mattering: int
    tau_mattering: float | None
    order_mattering: float | None
    pairs: int
    pairs_kept: float | None
    error: float
    tau_fp32: float
    tau_half: float
    best_is_best: bool


@dataclass(frozen=True)
class Case:
    """One model."""

    model: str
    samples: int
    batch_size: int
    fp32: float
    real_configs: int
    resampled: int
    wrong: int
    rejected: int
    bins: list[Bin]
    ranking: Ranking


def main() -> int:
    """See the module's description."""
    arguments = _arguments()
    cases = [_case(name, arguments) for name in arguments.only or MODELS]
    for case in cases:
        print(_table(case))
    if arguments.json:
        found = {
            "benchmark": "early_verdict",
            "host": host(),
            "tolerance": TOLERANCE,
            "cases": [asdict(case) for case in cases],
        }
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")
    return 1 if any(case.wrong for case in cases) else 0


# ----------------------------------------------------------------------------------------------------- real outputs


def _outputs(name: str, rows: int, keep: Path | None) -> dict[str, NDArray[Any]]:
    """Outputs of every config for every sample, by config, and the labels; read from ``keep`` where they are there."""
    kept = None if keep is None else keep / f"{name}_{rows}.npz"
    if kept is not None and kept.exists():
        with np.load(kept) as file:
            return dict(file)
    found = _run(name, rows)
    if kept is not None:
        np.savez(kept, allow_pickle=False, **found)
    return found


def _run(name: str, rows: int) -> dict[str, NDArray[Any]]:
    from distune.api.names import known_names
    from distune.backends.base import backend_class
    from distune.config.load import load_config
    from distune.data.loader import open_dataloader
    from distune.evaluation.feeds import to_feed
    from distune.space.tuning_space import build_space
    from distune.strategies.default import default_config
    from distune.strategies.op_type_wise import op_type_wise

    job = load_config(ROOT / "launch" / "examples" / f"{name}.yaml", [f"{LIMIT}={rows}"], known_names()).job()
    backend = backend_class(job.model.framework, job.approach)(job)
    facts = backend.facts()
    sizes = job.calibration.sampling_sizes
    space = build_space(facts.capability, job.constraints, job.approach, job.recipes, sizes)
    if job.calibration.dataloader is None or job.evaluation.dataloader is None:
        raise SystemExit(f"{name}.yaml has no data")
    source = open_dataloader(job.calibration.dataloader, job.seed)
    backend.prepare_calibration(sizes[0])
    batches = ((batch.index, to_feed(batch.inputs, facts.inputs)) for batch in source.head(sizes[0]))
    backend.set_statistics((), sizes[0], backend.calibrate((), batches))
    evaluation = list(open_dataloader(job.evaluation.dataloader, job.seed))
    feeds = [to_feed(batch.inputs, facts.inputs) for batch in evaluation]
    default = default_config(space, sizes[0])
    configs = {"default": default}
    configs |= {f"type: {item.label}": item.config for item in islice(op_type_wise(space, default), OP_TYPE_WISE)}
    configs |= {f"op: {group}": space.fallback(default, [group]) for group in space.quantized_groups(default)}
    labels = [np.asarray(batch.labels[0] if isinstance(batch.labels, tuple) else batch.labels) for batch in evaluation]
    found: dict[str, NDArray[Any]] = {"labels": np.concatenate(labels).reshape(-1)}
    for key, config in {"fp32": None, **configs}.items():
        model = backend.load(config)
        found[key] = np.concatenate([np.asarray(model.predict(feed)[0]) for feed in feeds])
        print(f"{name}: {key}: {np.mean(found[key].argmax(1) == found['labels']):.4f}", flush=True)
    backend.close()
    return found


# -------------------------------------------------------------------------------------------------------- verdicts


def _case(name: str, arguments: argparse.Namespace) -> Case:
    from distune.evaluation.criterion import Target, meets
    from distune.evaluation.verdict import Demand

    outputs = _outputs(name, arguments.rows, arguments.keep)
    labels, fp32 = outputs.pop("labels"), outputs.pop("fp32")
    real = dict(outputs)
    count = len(labels)
    ordered, baseline = _evaluator(np.arange(count), labels, fp32, arguments.batch_size)
    chance = np.random.default_rng(7)
    mixed = chance.permutation(count)
    target = baseline * (1 - TOLERANCE)
    demand = Demand((("", Target(target, True)),), accuracy="verdict")
    drops, shares, shuffled = [], [], []
    wrong = rejected = 0
    names = list(real)
    for _ in range(arguments.configs):
        # Each sample keeps fp32's outputs or takes those of a config, whose error is enlarged in every second one:
        # real configs of an easy model lose nothing, and bad ones are to be seen as well.
        taken = chance.random(count) < 1.2 * chance.random()
        enlarged = float(np.exp(chance.uniform(0, np.log(ENLARGED)))) if chance.random() < 0.5 else 1.0
        error = real[names[chance.integers(len(names))]] - fp32
        scores = fp32 + np.where(taken[:, None], np.float32(enlarged) * error, np.float32(0))
        value = float(np.mean(scores.argmax(1) == labels))
        score = ordered.score(_Table(scores), demand=demand)
        true = meets(value, target, True)
        wrong += score.verdict is not true or (score.complete and score.value != value)
        rejected += not true
        drops.append((baseline - value) / baseline)
        shares.append(score.samples / count)
        shuffled.append(_random_order_share(scores, labels, mixed, target, arguments.batch_size))
    bins = _bins(np.array(drops), np.array(shares), np.array(shuffled))
    ranking = _ranking(ordered, real, fp32, labels)
    return Case(
        name,
        count,
        arguments.batch_size,
        baseline,
        len(real),
        arguments.configs,
        int(wrong),
        int(rejected),
        bins,
        ranking,
    )


class _Table(RunnableModel):
    """A model that knows its outputs by heart; its input is the number of the sample."""

    def __init__(self, scores: NDArray[Any]) -> None:
        self._scores = scores

    def predict(self, feed: Any) -> list[NDArray[Any]]:
        return [self._scores[feed["id"][:, 0]]]

    @property
    def native(self) -> Any:
        return None

    @property
    def size_bytes(self) -> int:
        return 0


def _evaluator(
    ids: NDArray[np.intp], labels: NDArray[Any], fp32: NDArray[Any], batch_size: int
) -> tuple[Evaluator, float]:
    """The tuner's evaluator over sample numbers, with the order of the samples; and fp32's accuracy."""
    from distune.backends.base import InputInfo
    from distune.config.job import ComponentSpec, EvaluationSpec, MetricSpec
    from distune.evaluation.accuracy import Evaluator

    data = [
        (ids[start : start + batch_size, None], labels[ids[start : start + batch_size]])
        for start in range(0, len(ids), batch_size)
    ]
    spec = EvaluationSpec(data, (MetricSpec(ComponentSpec("topk", {"k": 1})),))
    evaluator = Evaluator(spec, [InputInfo("id", "int64", (None, 1))], ["logits"], 0)
    return evaluator, evaluator.score_fp32(_Table(fp32)).value


def _random_order_share(
    scores: NDArray[Any], labels: NDArray[Any], order: NDArray[np.intp], target: float, batch_size: int
) -> float:
    """Share of the samples after which a verdict in a random order is certain, in whole batches."""
    wrong = np.cumsum((scores.argmax(1) != labels)[order])
    count = len(labels)
    for seen in range(batch_size, count, batch_size):
        if (count - wrong[seen - 1]) / count < target:
            return seen / count
    return 1.0


def _bins(drops: NDArray[Any], shares: NDArray[Any], shuffled: NDArray[Any]) -> list[Bin]:
    found = []
    for low, high in zip((-math.inf, *DROPS[:-1]), DROPS, strict=True):
        inside = (drops > low) & (drops <= high)
        if inside.any():
            bounds = max(low, -1.0), high
            means = float(shares[inside].mean()), float(shuffled[inside].mean())
            found.append(Bin(*bounds, int(inside.sum()), *means))
    return found


# --------------------------------------------------------------------------------------------------------- ranking


def _ranking(evaluator: Evaluator, real: dict[str, NDArray[Any]], fp32: NDArray[Any], labels: NDArray[Any]) -> Ranking:
    from scipy.stats import kendalltau, somersd

    groups = [key for key in real if key.startswith("op:")]
    right = np.array([real[key].argmax(1) == labels for key in groups])
    base = real["default"].argmax(1) == labels
    count = len(labels)
    gains = right.sum(1) - base.sum()
    errors = np.sqrt(np.maximum((right != base).sum(1), 1))
    share, scores = _decisive(evaluator, real["default"], [real[key] for key in groups])
    by_fp32 = _decisive(evaluator, fp32, [real[key] for key in groups])[1]
    matters = np.abs(gains) >= 2 * errors
    apart = [
        (one, other)
        for one, other in combinations(range(len(groups)), 2)
        if abs(gains[one] - gains[other]) >= 2 * math.sqrt(max(1, int(np.sum(right[one] != right[other]))))
    ]
    kept = [(gains[one] - gains[other]) * (scores[one] - scores[other]) > 0 for one, other in apart]
    winner = int(scores.argmax())
    return Ranking(
        share=share,
        groups=len(groups),
        tau=float(kendalltau(gains, scores).statistic),
        mattering=int(matters.sum()),
        tau_mattering=_number(kendalltau(gains[matters], scores[matters]).statistic) if matters.sum() > 1 else None,
        order_mattering=_number(somersd(gains[matters], scores[matters]).statistic) if matters.sum() > 1 else None,
        pairs=len(apart),
        pairs_kept=float(np.mean(kept)) if kept else None,
        error=float(np.abs(np.round(scores * count) - right.sum(1)).max()),
        tau_fp32=float(kendalltau(gains, by_fp32).statistic),
        tau_half=float(kendalltau(*(right[:, half::2].mean(1) for half in (0, 1))).statistic),
        best_is_best=bool(gains.max() - gains[winner] <= 2 * errors[winner]),
    )


def _number(value: float) -> float | None:
    """``None`` where there was nothing to compare."""
    return float(value) if math.isfinite(value) else None


def _decisive(
    evaluator: Evaluator, base: NDArray[Any], changed: Sequence[NDArray[Any]]
) -> tuple[float, NDArray[np.float64]]:
    """Share of the samples that are decisive by the margins of ``base``, and the scores by them."""
    from distune.evaluation.criterion import Target
    from distune.evaluation.verdict import Demand

    decisive = evaluator.survey(_Table(base), Demand())[1]
    if decisive is None:
        raise SystemExit("too few samples: a fifth of them is less than a batch")
    # No target within reach: every group is ranked on the decisive samples and not a sample more.
    demand = Demand((("", Target(math.inf, True)),), accuracy="ranking")
    scored = [evaluator.score(_Table(scores), demand=demand, decisive=decisive) for scores in changed]
    return len(decisive.rows) / decisive.samples, np.array([score.graded for score in scored], float)


# ------------------------------------------------------------------------------------------------------ what is said


def _table(case: Case) -> str:
    lines = [
        f"\n{case.model}: {case.samples} samples in batches of {case.batch_size}, fp32 {case.fp32:.4f}, criterion "
        f"relative {TOLERANCE:.0%}; {case.resampled} configs resampled from {case.real_configs} real ones, "
        f"{case.rejected} of them fail; wrong verdicts: {case.wrong}",
        f"{'true drop':>20}  {'configs':>7}  {'samples seen':>12}  {'random order':>12}",
    ]
    for item in case.bins:
        drop = f"{'better' if item.low < 0 else f'{item.low:.1%}'} .. {item.high:.1%}"
        lines.append(f"{drop:>20}  {item.configs:7}  {item.ordered:12.0%}  {item.shuffled:12.0%}")
    rank = case.ranking
    mattering = "-" if rank.tau_mattering is None else f"{rank.tau_mattering:.2f}"
    unequal = "-" if rank.order_mattering is None else f"{rank.order_mattering:.2f}"
    kept = "-" if rank.pairs_kept is None else f"{rank.pairs_kept:.0%}"
    lines += [
        f"ranking of {rank.groups} groups on {rank.share:.0%} of the samples: tau {rank.tau:.2f}, over the "
        f"{rank.mattering} that matter {mattering} ({unequal} over pairs of unequal gain); best group "
        f"{'in front' if rank.best_is_best else 'NOT in front'}",
        f"of {rank.pairs} pairs that differ {kept} in the same order; gains off by {rank.error:.0f} samples at most; "
        f"tau {rank.tau_fp32:.2f} by fp32's margins, {rank.tau_half:.2f} between full rankings of two halves",
    ]
    return "\n".join(lines)


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=MODELS, help="this model; may be given several times")
    parser.add_argument("--rows", type=int, default=1000, help="samples of the evaluation set")
    parser.add_argument("--batch-size", type=int, default=20, help="samples after which a verdict is looked for")
    parser.add_argument("--configs", type=int, default=1000, help="resampled configs of each model")
    parser.add_argument("--keep", type=Path, help="folder for the models' outputs, to be used again")
    parser.add_argument("--json", help="where to write the figures")
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
