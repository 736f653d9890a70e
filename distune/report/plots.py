"""PNG plots of a run for papers and slides: accuracy against cost, and what each op costs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from distune.errors import MissingExtraError
from distune.journal.files import replace_file
from distune.report.evidence import Evidence
from distune.report.html.data import final_mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 200
_OPS_SHOWN = 40
_Point = tuple[float, float, str, int]
"""Cost, accuracy, verdict and id of a trial."""

_VERDICTS = {"met": ("tab:green", "meets"), "not_met": ("tab:orange", "does not meet")}


def write_plots(evidence: Evidence, folder: Path) -> list[Path]:
    """Write the plots that the run's data allow; returns their files.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: They cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "to draw PNG plots") from error
    measured, sized, ranked = _measured(evidence), _sized(evidence), _impact(evidence)
    plots: dict[str, tuple[float, Callable[[Axes], None]]] = {}
    if measured:
        plots["accuracy_latency.png"] = (4.0, lambda axes: _accuracy_latency(axes, evidence, measured))
    if sized:
        plots["accuracy_size.png"] = (4.0, lambda axes: _accuracy_size(axes, evidence, sized))
    if ranked:
        height = 1.2 + 0.22 * min(_OPS_SHOWN, len(ranked))
        plots["sensitivity.png"] = (height, lambda axes: _sensitivity(axes, evidence, ranked))
    for name, (height, draw) in plots.items():
        figure = Figure(figsize=(6.4, height), layout="constrained")
        draw(figure.add_subplot())
        image = io.BytesIO()
        figure.savefig(image, dpi=_DPI)
        replace_file(folder / name, image.getvalue())
    return [folder / name for name in plots]


def _measured(evidence: Evidence) -> list[_Point]:
    return [
        (trial.latency.ratio, trial.accuracy, trial.verdict, trial.id)
        for trial in evidence.result.trials
        if trial.accuracy is not None and trial.latency is not None and trial.latency.ratio is not None
    ]


def _sized(evidence: Evidence) -> list[_Point]:
    return [
        (trial.size_bytes / 1e6, trial.accuracy, trial.verdict, trial.id)
        for trial in evidence.result.trials
        if trial.accuracy is not None and trial.size_bytes is not None
    ]


def _impact(evidence: Evidence) -> list[tuple[str, float]]:
    known = [(name, gain) for name, gain in evidence.result.op_impact.items() if gain is not None]
    return sorted(known, key=lambda pair: -pair[1])


def _accuracy_latency(axes: Axes, evidence: Evidence, points: list[_Point]) -> None:
    _scatter(axes, evidence, points)
    axes.axvline(1, color="tab:gray", linewidth=0.8)
    axes.set_xlabel("latency / fp32")


def _accuracy_size(axes: Axes, evidence: Evidence, points: list[_Point]) -> None:
    _scatter(axes, evidence, points)
    axes.set_xlabel("size (MB)")


def _scatter(axes: Axes, evidence: Evidence, points: list[_Point]) -> None:
    for verdict, (colour, label) in _VERDICTS.items():
        own = [point for point in points if point[2] == verdict]
        if own:
            axes.scatter([p[0] for p in own], [p[1] for p in own], s=18, color=colour, alpha=0.75, label=label)
    best = evidence.result.best
    chosen = [point for point in points if best is not None and point[3] == best.trial]
    axes.scatter([p[0] for p in chosen], [p[1] for p in chosen], s=70, facecolors="none", edgecolors="black")
    criterion = evidence.result.criterion
    if criterion is not None and criterion.target is not None:
        axes.axhline(criterion.target, color="tab:green", linestyle="--", linewidth=1, label="target")
    axes.set_ylabel("accuracy")
    axes.legend(frameon=False, fontsize="small")


def _sensitivity(axes: Axes, evidence: Evidence, ranked: list[tuple[str, float]]) -> None:
    best = evidence.result.best
    config = None if best is None else evidence.configs.get(best.trial)
    shown = ranked[:_OPS_SHOWN][::-1]
    colours = ["tab:orange" if final_mode(config, name) == "fp32" else "tab:blue" for name, _ in shown]
    axes.barh([name for name, _ in shown], [gain for _, gain in shown], color=colours)
    axes.set_xlabel("accuracy gained in floating point")
    axes.tick_params(axis="y", labelsize=7)


__all__ = ["write_plots"]
