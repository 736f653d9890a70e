"""``docs/benchmarks.md`` and its plots, made from ``benchmarks/results/*.json``.

python benchmarks/page.py
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#bf3989", "#1b7c83", "#bc4c00", "#6e7781")
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 360, 60, 40
IDEAL = "as many as ranks"


def main() -> int:
    """Write the page."""
    PLOTS.mkdir(parents=True, exist_ok=True)
    parts = [
        "# Benchmarks",
        "Made by `python benchmarks/page.py` from `benchmarks/results/*.json`. Each section names the script that "
        "wrote its file, and the machine where time is measured. A load average above one says that other work shared "
        "the machine: seconds are then worth little, and ratios, whose sides were measured in turns, are worth more.",
    ]
    for name, write in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            parts += write(json.loads(path.read_text()))
    PAGE.write_text("\n\n".join(parts) + "\n")
    print(f"{PAGE.relative_to(ROOT)} and {len(list(PLOTS.glob('*.svg')))} plots")
    return 0


def _notes(figures: dict[str, Any]) -> list[str]:
    """What a reader has to know of how the figures came about."""
    notes = figures.get("notes", [])
    return ["How to read these:", "\n".join(f"- {note}" for note in notes)] if notes else []


def _host(host: dict[str, Any]) -> str:
    if "cpu" not in host:  # a file of early days
        return ""
    when = f", {host['when']}" if "when" in host else ""
    return (
        f"{host['cpu']}, {host['cores']} cores, load average {host['load_average']:.1f} at the start, "
        f"Python {host['python']}{when}."
    )


# ------------------------------------------------------------------------------------------------------------- peers


def _peers(figures: dict[str, Any]) -> list[str]:
    packages = "; ".join(f"{peer}: {', '.join(pins)}" for peer, pins in figures["packages"].items())
    judge = next(found["judge"] for found in figures["cases"].values())
    parts = [
        "## distune, INC 2.6 and NNCF",
        f"`python benchmarks/peers.py`. Same model, data, evaluation, criterion (relative 1%) and one core; all final "
        f"models judged and timed by one script in ONNX Runtime {judge}; the last column is the one that the tuner "
        f"itself used. Seconds are those to the accepted model, without start-up and without the latency that distune "
        f"alone measures; with it they are in the next column. The floor is fp32 once, the calibration data once and "
        f"the accepted model once, pure inference, in processor seconds. b1 and b32: latency against fp32 at batch 1 "
        f"and 32, one thread. In brackets is the accuracy of a model that only a session without the graph "
        f"optimization WeightBiasQuantization keeps. Environments: {packages}. {_host(figures['host'])}",
    ]
    head = ("tuner", "wall s", "with latency", "CPU s", "CPU ÷ floor", "evaluations", "accuracy", "met", "int8 ops")
    for case, found in figures["cases"].items():
        rows = [_peer_row(tuner, row) for tuner, row in found["tuners"].items()]
        parts += [f"### {case}, fp32 {found['fp32_accuracy']:.4f}", _table((*head, "b1", "b32", "ONNX Runtime"), rows)]
    bars = [
        (f"{case}: {tuner}", row["processor_s"], COLOURS[("distune", "inc", "nncf").index(tuner.split()[0])])
        for case, found in figures["cases"].items()
        for tuner, row in found["tuners"].items()
        if "processor_s" in row and "accuracy" in row
    ]
    (PLOTS / "peers.svg").write_text(_bars("processor seconds to the accepted model", bars))
    parts += _notes(figures)
    return [*parts, "![Processor seconds to the accepted model](benchmarks/peers.svg)"]


def _peer_row(tuner: str, row: dict[str, Any]) -> tuple[str, ...]:
    wall, processor = f"{row['seconds']:.1f}", f"{row['processor_s']:.1f}" if "processor_s" in row else ""
    whole = f"{row['seconds'] + row.get('apart', {}).get('latency', 0.0):.1f}"
    if row.get("stopped"):
        return (tuner, wall, whole, processor, "", "", "stopped", "", "", "", "", "")
    if "accuracy" not in row:
        return (tuner, wall, whole, processor, "", f"{row.get('evaluations', 0):.1f}", "no model", "", "", "", "", "")
    other = row["accuracy_without_weight_bias_quantization"]
    elsewhere = f" ({other:.4f})" if abs(other - row["accuracy"]) > 0.005 else ""
    return (
        tuner,
        wall,
        whole,
        processor,
        f"{row['over_floor']:.2f}",
        f"{row['evaluations']:.1f}",
        f"{row['accuracy']:.4f}{elsewhere}",
        "yes" if row["met"] else "no",
        str(row["ops_int8"]),
        f"{row['latency']['b1'][0]:.2f}",
        f"{row['latency']['b32'][0]:.2f}",
        str(row.get("onnxruntime", "")),
    )


# ----------------------------------------------------------------------------------------------------------- scaling


_MASTER = {"sleep 2 s a trial": "layers", "answer at once": "loaded"}


def _scaling(figures: dict[str, Any]) -> list[str]:
    rows: list[Sequence[str]]
    parts = ["## Scaling", f"`python benchmarks/scaling.py`. {_host(figures['host'])}"]
    if "real" in figures:
        real = figures["real"]
        rows = [
            (f"{ratio:.2f}", f"{stage:.2f}", f"{(before + after) / 2:.2f}")
            for ratio, stage, before, after in zip(
                real["speedups"], real["ranking_speedups"], real["floors"], real["floors"][1:], strict=False
            )
        ]
        parts += [
            f"Two real ranks against one, next to what two processes that only infer get done against one on this "
            f"machine at that time: {real['over_floor']:.2f} of it, {real['without_latency_over_floor']:.2f} without "
            "the latency measurement, in which all but one hold still (ranking stage "
            f"{real['ranking_over_floor']:.2f}; goal {real['goal']}).",
            _table(("run", "ranking stage", "two processes"), rows),
        ]
    if "simulated" in figures:
        simulated = figures["simulated"]
        parts.append(
            f"The engine and the strategies on simulated ranks, a model of {simulated['ops']} ops of which a quarter "
            f"must fall back, trials as long as recorded in the real run. Smaller models for `mse_v2` and the samplers "
            f"that think, whose simulations take long. The serial part is the time left on any number of ranks. "
            f"No schedule passes the limit: the number of ranks, or the time on one rank over the serial part. "
            f"Amdahl's law takes the serial part as work that nothing runs beside; here it is the longest chain of "
            f"trials, most of which have others beside them, so that speed-ups may be above it. A strategy saturates "
            f"where twice as many ranks bring less than 10%. The ms of its own are processor time that engine, "
            f"strategy and simulator take for a trial on this machine; the simulated seconds do not contain them, and "
            f"at {simulated['ops']} ops the samplers would think longer. `sigopt` asks a service: it scales as "
            f"`bayesian` with batches of its `parallel_bandwidth`."
        )
        forms = {"strategy": "", "ops": "", "trials": "", "stages": "", "widest": "", "own_ms": ".0f"}
        rows = [
            [
                *_cells(one, **forms),
                *(f"{seconds:.1f}" for seconds in (one["points"][0]["seconds"], one["serial_s"])),
                f"{one['points'][-1]['limit']:.1f}",
                str(one["saturates_at"]),
                next(f"{p['speedup']:.1f}" for p in one["points"] if one["saturates_at"] in (p["ranks"], None)),
                one["chain"],
            ]
            for one in simulated["strategies"]
        ]
        head = ("strategy", "ops", "trials", "stages", "widest", "ms of its own", "s on one rank", "serial part s")
        parts += [
            _table((*head, "limit", "saturates at", "speed-up there", "because"), rows),
            f"Ranking stage of `basic` on 64 ranks: {simulated['ranking_at_64']:.2f}, and "
            f"{simulated['ranking_at_64_if_trials_are_alike']:.2f} if all trials take the same time (goal "
            f"{simulated['goal']}), where no rank begins with it before it opens. In the table below idle ranks do, "
            f"during the stages before, so that what is left of the stage takes less time than its share: above 1.",
        ]
        for one in simulated["strategies"]:
            why = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in one["because"])
            parts += [
                f"### {one['strategy']}, {one['trials']} trials",
                f"Saturates at {one['saturates_at']} ranks: {one['chain']}. There the time is: {why}.",
                _table(
                    ("ranks", "seconds", "speed-up", "Amdahl", "limit", "of the limit", "busy", "ranking stage"),
                    [_point_row(point) for point in one["points"]],
                ),
            ]
        lines = [
            (one["strategy"], [(point["ranks"], point["speedup"]) for point in one["points"]])
            for one in simulated["strategies"]
        ]
        lines.append((IDEAL, [(2.0**power, 2.0**power) for power in range(6)]))
        (PLOTS / "scaling.svg").write_text(_lines("speed-up against ranks", lines))
        parts.append("![Speed-up against ranks](benchmarks/scaling.svg)")
    if "master" in figures:
        master = figures["master"]
        forms = {"layer": "", "median_ms": ".3f", "p99_ms": ".3f", "trials_per_s": ".0f"}
        rows = [[how, *_cells(layer, **forms)] for how, name in _MASTER.items() for layer in master[name]]
        parts += [
            f"Processor time that the master spends on a trial, 64 real ranks (goal {master['goal_ms']} ms median):",
            _table(("the ranks", "up to", "median ms", "p99 ms", "trials a second"), rows),
        ]
    return [*parts, *_notes(figures)]


def _point_row(point: dict[str, Any]) -> list[str]:
    told = _cells(point, ranks="", seconds=".1f", speedup=".1f", amdahl=".1f", limit=".1f")
    return [*told, f"{point['speedup'] / point['limit']:.2f}", *_cells(point, busy=".2f", ranking_efficiency=".2f")]


def _early_verdict(figures: dict[str, Any]) -> list[str]:
    rows, rankings = [], []
    for case in figures["cases"]:
        near = [one for one in case["bins"] if one["low"] >= figures["tolerance"] and one["ordered"] is not None]
        shares = [_share(one, "ordered") for one in near], [_share(one, "shuffled") for one in near]
        words = [case["model"], str(case["resampled"]), str(case["wrong"])]
        rows.append([*words, *(", ".join(each) for each in shares)])
        found = case["ranking"]
        forms = {"groups": "", "share": ".0%", "tau": ".2f", "mattering": "", "tau_mattering": ".2f"}
        forms |= {"order_mattering": ".2f", "pairs": "", "pairs_kept": ".0%", "error": ".0f", "tau_fp32": ".2f"}
        rankings.append([case["model"], str(case["samples"]), *_cells(found, **forms, tau_half=".2f")])
    names = [one for one in figures["cases"][0]["bins"] if one["low"] >= figures["tolerance"]]
    drops = ", ".join(f"{one['low']:.1%}" for one in names)
    head = ("model", "samples", "groups", "seen", "tau", "that matter", "tau of them", "unequal gains", "pairs apart")
    return [
        "## Early verdict",
        f"`python benchmarks/early_verdict.py`. Share of the samples that a trial needs to be rejected for sure, by "
        f"what it loses (from {drops} on), ordered by margin and shuffled.",
        _table(("model", "configs", "wrong verdicts", "ordered", "shuffled"), rows),
        "## Decisive samples for ranking",
        "`python benchmarks/early_verdict.py`. The order of the groups of ops by what their fallback gains over the "
        "default config: on the share of the samples that was seen, those of the smallest margins of the default "
        "config, against the order on all of them. Tau is Kendall's tau-b over all groups. Those matter whose gain "
        "is at least twice its standard error, by the samples that flipped; several of them may gain exactly the "
        "same, and tau-b counts it as a fault that the shift of the logits tells those apart, so the next column "
        "leaves pairs of equal gain out (Somers' d). Pairs apart differ by at least twice the standard error of "
        "their difference; kept is the share that comes in the same order. Off is the most samples by which a gain "
        "is misjudged. By fp32 is tau where fp32's margins choose the samples; halves, that between full rankings "
        "of the even and of the odd samples: what an order on so few samples is worth in itself. The config that "
        "the groups differ from is scored in full once more, so a ranking of n groups costs that share of n "
        "evaluations and one.",
        _table((*head, "kept", "off", "by fp32", "halves"), rankings),
    ]


def _share(one: dict[str, Any], how: str) -> str:
    return "-" if one[how] is None else f"{one[how]:.0%}"


def _latency_noise(figures: dict[str, Any]) -> list[str]:
    forms = {"situation": "", "method": "", "median": ".3f", "deviation": ".1%", "worst": ".1%", "close": ".0%"}
    forms |= {"coverage": ".0%", "half_width": ".4f", "noisy": ".0%"}
    reference, goals = figures["reference"], figures["goals"]
    head = ("situation", "method", "median", "off", "worst", "within 3%", "covered", "half width", "called noisy")
    return [
        "## Latency beside a noisy neighbour",
        f"`python benchmarks/latency_noise.py`. {figures['config']}, {figures['repeats']} measurements in each "
        f"situation, models loaded {figures['loaded']}. True ratio {reference['ratio']:.4f} "
        f"[{reference['ci_low']:.4f}, {reference['ci_high']:.4f}], from {reference['pairs']} quiet pairs in between. "
        f"Held is what distune does: neighbours are stopped while it measures. Goals for it: median within "
        f"{goals['held_median']:.0%} of the quiet one, {goals['held_coverage']:.0%} of the intervals contain the true "
        f"ratio. {_host(figures['host'])}",
        _table(head, [_cells(row, **forms) for row in figures["rows"]]),
        *_notes(figures),
    ]


def _models(figures: dict[str, Any]) -> list[str]:
    rows = [
        [
            *_cells(row, example="", method="", metric=".4f", change="+.1%"),
            "yes" if row["met"] else "no",
            f"{row['latency_ratio']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]",
            *_cells(row, size_ratio=".2f"),
        ]
        for row in figures["rows"]
        if row["method"] != "fp32"
    ]
    return [
        "## What comes out",
        f"`python benchmarks/models.py`. The examples as they are shipped, on at most {figures['limit']} images, and "
        f"the plain quantization of ONNX Runtime beside them. Metric: accuracy, for MiniLM Spearman's correlation, for "
        f"the GPT perplexity. Latency at batch 1 and size are against fp32. {_host(figures['host'])}",
        _table(("example", "method", "metric", "change", "met", "latency", "size"), rows),
        *_notes(figures),
    ]


def _pytorch(figures: dict[str, Any]) -> list[str]:
    rows = []
    for run in figures["runs"]:
        told = _cells(run, example="", strategy="", ranks="", outcome="", accuracy=".4f", baseline=".4f")
        rows.append([*told, f"{run['int8']} of {run['ops']}", *_cells(run, trials="", ratio=".2f"), run["winner"][:8]])
    head = ("model", "strategy", "ranks", "outcome", "accuracy", "fp32", "int8 ops", "trials", "latency", "winner")
    alike = [_cells(one, example="", ops="", pytorch=".4f", onnxruntime=".4f") for one in figures["agreements"]]
    return [
        "## PyTorch",
        "`python benchmarks/pytorch_acceptance.py --limit 500`. Latency is that of the lowered model against fp32 "
        "compiled by the same compiler. The same winner on one rank and on three.",
        _table(head, sorted(rows)),
        "The same config in both backends, on the complete evaluation sets:",
        _table(("model", "int8 ops", "PyTorch", "ONNX Runtime"), alike),
        *_notes(figures),
    ]


# ------------------------------------------------------------------------------------------------------------- forms


def _cells(row: dict[str, Any], **forms: str) -> list[str]:
    """What ``row`` says under these names, each in its format; nothing where it was not measured."""
    return ["" if row[name] is None else format(row[name], form) for name, form in forms.items()]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _lines(title: str, lines: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """Lines over two logarithmic axes of base 2; the ideal is dashed."""
    top = max(math.log2(max(y, 1.0)) for _, points in lines for _, y in points) or 1.0
    right = max(math.log2(x) for _, points in lines for x, _ in points) or 1.0
    across, up = (WIDTH - LEFT - 170) / right, (HEIGHT - BOTTOM - 30) / top
    parts = [_text(WIDTH / 2, 18, title, "middle")]
    for power in range(int(right) + 1):
        parts.append(_text(LEFT + power * across, HEIGHT - BOTTOM + 18, str(2**power), "middle"))
    for power in range(int(top) + 1):
        parts.append(_text(LEFT - 8, HEIGHT - BOTTOM - power * up + 4, str(2**power), "end"))
    for number, (name, points) in enumerate(lines):
        colour, dash = COLOURS[number % len(COLOURS)], ' stroke-dasharray="4 4"' if name == IDEAL else ""
        places = " ".join(
            f"{LEFT + math.log2(x) * across:.1f},{HEIGHT - BOTTOM - math.log2(max(y, 1.0)) * up:.1f}" for x, y in points
        )
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(_text(WIDTH - 160, 40 + 18 * number, name, "start", colour))
    return _svg(parts, HEIGHT)


def _bars(title: str, bars: Sequence[tuple[str, float, str]]) -> str:
    longest = max((value for _, value, _ in bars), default=1.0)
    parts = [_text(WIDTH / 2, 18, title, "middle")]
    for number, (name, value, colour) in enumerate(bars):
        y = 34 + 22 * number
        length = (WIDTH - 250) * value / longest
        parts.append(_text(175, y + 12, name, "end"))
        parts.append(f'<rect x="180" y="{y}" width="{length:.1f}" height="16" fill="{colour}"/>')
        parts.append(_text(186 + length, y + 12, f"{value:.1f}", "start"))
    return _svg(parts, 44 + 22 * len(bars))


def _text(x: float, y: float, words: str, anchor: str, colour: str = "#24292f") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def _svg(parts: Iterable[str], height: int) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _trials(figures: dict[str, Any]) -> list[str]:
    forms = {"name": "", "first_graph": ".1f", "graph": ".1f", "session": ".1f", "scoring": ".1f"}
    head = ("model", "first graph", "graph", "session", "scoring", "inference", "not inference")
    return [
        "## Where the time of a trial goes",
        f"`python benchmarks/overhead.py --trials`. Milliseconds of a trial of the ranking stage on {figures['rows']} "
        f"samples; the first graph also quantizes every weight. Goal: at most {figures['trials'][0]['goal']:.0%} is "
        f"not inference. {_host(figures['host'])}",
        _table(head, [_cells(row, **forms, inference=".1f", overhead=".1%") for row in figures["trials"]]),
        *_notes(figures),
    ]


def _suffix(figures: dict[str, Any]) -> list[str]:
    forms = {
        "name": "",
        "groups": "",
        "samples": "",
        "cuts": "",
        "kept_mib": ".0f",
        "whole_s": ".1f",
        "suffix_s": ".1f",
    }
    head = ("model", "groups", "samples", "cuts", "MiB kept", "whole s", "suffix s", "ratio", "answers that differ")
    return [
        "## Suffix-only evaluation",
        f"`python benchmarks/suffix.py`. The ranking stage, every trial run as a whole and from the last cut before "
        f"its op. Goal: {figures['goal']} times as fast, and no answer may differ. {_host(figures['host'])}",
        _table(head, [_cells(row, **forms, ratio=".2f", differing="") for row in figures["stages"]]),
        *_notes(figures),
    ]


def _idle_ranks(figures: dict[str, Any]) -> list[str]:
    return [
        "## Ranks that wait",
        f"`python benchmarks/idle_ranks.py`. {len(figures['percent_of_a_core'])} ranks that wait for work for "
        f"{figures['seconds']:.0f} s under {figures['mpi']}: the busiest takes {figures['worst']:.1f}% of a core (goal "
        f"{figures['goal']:.0f}%). {_host(figures['host'])}",
        *_notes(figures),
    ]


def _resident(figures: dict[str, Any]) -> list[str]:
    before = {row["ranks"]: row for row in figures["before"]["rows"]}
    rows = [
        [*_cells(row, ranks="", added_pss=".0f"), f"{before[row['ranks']]['added_pss']:.0f}"] for row in figures["rows"]
    ]
    return [
        "## Memory of a further rank",
        f"`python benchmarks/resident.py`, {figures['config']}, a model of {figures['model_mib']:.0f} MiB: MiB that "
        f"each rank of a node adds (PSS, where a page that several map counts once), and what it added before the "
        f"ranks of a node shared weights. {_host(figures['host'])}",
        _table(("rank", "MiB added", "before"), rows),
        *_notes(figures),
    ]


SECTIONS = {
    "models": _models,
    "peers": _peers,
    "scaling": _scaling,
    "trials": _trials,
    "suffix": _suffix,
    "early_verdict": _early_verdict,
    "latency_noise": _latency_noise,
    "idle_ranks": _idle_ranks,
    "resident": _resident,
    "pytorch_acceptance": _pytorch,
}
"""What writes each file of results, in the order of the page."""


if __name__ == "__main__":
    sys.exit(main())
