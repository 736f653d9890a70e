"""Builds ``report.html``: one self-contained page from the evidence of a run.

What matters most (verdict, figures, warnings, how to reproduce) is plain HTML that is readable without JavaScript. The
charts and the table of trials are drawn by ``report.js`` from the JSON that the page carries. Nothing is loaded from
anywhere, and every text of the user's goes in escaped.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import yaml

from distune.report import words
from distune.report.evidence import Evidence
from distune.report.html.data import page_data
from distune.report.result import RunResult

_TITLES = {
    "met": "The accuracy is kept",
    "not_met": "The accuracy could not be kept",
    "budget_spent": "The budget ran out first",
    "interrupted": "Interrupted",
    "failed": "The run failed",
    "not_judged": "Quantized, not judged",
}


def render(evidence: Evidence) -> str:
    """The page.

    Returns:
        A complete HTML document without references to anything outside it.
    """
    result = evidence.result
    name = str(evidence.settings.get("model", {}).get("name") or "model")
    data = json.dumps(page_data(evidence), separators=(",", ":"), allow_nan=False)
    return _TEMPLATE.format(
        title=_text(f"{name}: {_TITLES[result.outcome]} - distune"),
        css=_asset("report.css"),
        js=_asset("report.js"),
        # Inside a script element only "<" could end it or begin a comment.
        data=data.replace("<", "\\u003c"),
        outcome=result.outcome,
        name=_text(name),
        headline=_text(_TITLES[result.outcome]),
        sentence=_text(_sentence(words.verdict_sentence(result))),
        next_step=_text(_sentence(words.next_step(result))),
        cards=_cards(result),
        remarks=_remarks(result),
        stages=_stages(result),
        fallback=_fallback(result),
        settings=_settings(evidence),
        versions=_pairs(result.versions),
        hosts=_hosts(result),
        reproduce=_reproduce(evidence),
        written=_text(f"distune {result.distune_version}"),
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _cards(result: RunResult) -> str:
    baseline, best, criterion = result.baseline, result.best, result.criterion
    fp32 = None if baseline is None else baseline.accuracy
    target = None if criterion is None else criterion.target
    latency = None if best is None else best.latency
    interval = "not measured"
    if latency is not None and latency.ci_low is not None and latency.ci_high is not None:
        interval = f"95% interval {latency.ci_low:.3f} to {latency.ci_high:.3f}" + (", noisy" if latency.noisy else "")
        interval += f"; batch {latency.batch_size}, {words.counted(latency.threads, 'thread')}"
    ratio = "-" if latency is None or latency.ratio is None else f"{latency.ratio:.3f} \N{MULTIPLICATION SIGN}"
    smaller = ""
    if best is not None and best.size_bytes and baseline is not None and baseline.size_bytes:
        smaller = f"{best.size_bytes / baseline.size_bytes:.0%} of fp32's {words.size(baseline.size_bytes)}"
    executed = ""
    if best is not None and best.ops_executed_int8 is not None:
        executed = f"{best.ops_executed_int8} run on integers"
    effort = "best effort" if best is not None and best.best_effort else "accepted model"
    return "".join(
        [
            _card(
                "Accuracy",
                words.accuracy(best.accuracy if best else None),
                f"fp32 {words.accuracy(fp32)}, target {words.accuracy(target)}",
            ),
            _card("Latency against fp32", ratio, interval),
            _card("Size", words.size(best.size_bytes if best else None), smaller),
            _card("Ops quantized", f"{best.ops_quantized} of {best.ops_total}" if best else "-", executed or effort),
            _card(
                "Trials",
                str(len(result.trials)),
                f"{words.duration(result.timing.total_s)} on {words.rank_count(result.ranks)}",
            ),
        ]
    )


def _card(label: str, value: str, note: str) -> str:
    return f'<div class="card"><dt>{_text(label)}</dt><dd>{_text(value)}<small>{_text(note)}</small></dd></div>'


def _remarks(result: RunResult) -> str:
    shown = [("Warning", text) for text in result.warnings] + [("Left out", text) for text in result.skipped_candidates]
    if result.lost_ranks:
        shown.insert(0, ("Lost", f"ranks that died: {', '.join(map(str, result.lost_ranks))}"))
    if not shown:
        return ""
    lines = "".join(f"<li><b>{kind}</b> {_text(text)}</li>" for kind, text in shown)
    return f'<section><h2>What you should know</h2><ul class="remarks">{lines}</ul></section>'


def _stages(result: RunResult) -> str:
    rows = [
        (
            stage.name,
            f"{stage.judged}" + (f" of {stage.candidates}" if stage.candidates is not None else ""),
            words.duration(stage.seconds),
            "met" if stage.met else "",
        )
        for stage in result.stages
    ]
    return _table(("stage", "judged", "took", ""), rows)


def _fallback(result: RunResult) -> str:
    best = result.best
    if best is None or not best.fallback_ops:
        return "<p>No op had to go back to floating point.</p>"
    untold = {name: "" for name in best.fallback_ops if name not in best.fallback_reasons}
    return _table(("kept in floating point", "because"), words.kept({**best.fallback_reasons, **untold}))


def _settings(evidence: Evidence) -> str:
    shown = {key: value for key, value in evidence.settings.items() if key != "distune_version"}
    options = dict(evidence.result.session_options)
    text = yaml.safe_dump(_plain({**shown, **({"session_options": options} if options else {})}), sort_keys=False)
    return f"<pre>{_text(text)}</pre>"


def _plain(value: Any) -> Any:
    """Values that YAML's safe dumper writes without tags."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return value
    return [_plain(item) for item in value]


def _hosts(result: RunResult) -> str:
    return _pairs({host.name: f"{host.cpu} ({', '.join(host.isa)})" for host in result.hosts})


def _pairs(values: Mapping[str, object]) -> str:
    if not values:
        return "<p>Not known: the run ended before it told.</p>"
    return _table((), [(name, str(value)) for name, value in values.items()])


def _reproduce(evidence: Evidence) -> str:
    lines = [f"# seed {evidence.result.seed}, {words.rank_count(evidence.result.ranks)}"]
    lines += ["python -m distune run CONFIG.yaml --fresh      # the same winner with any number of ranks"]
    if evidence.result.best is not None and evidence.ended:
        lines += ["python -m distune export best/tuning_config.yaml --model FP32_MODEL --output quantized"]
    return f"<pre>{_text(chr(10).join(lines))}</pre>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    heading = f"<thead><tr>{columns}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{heading}<tbody>{body}</tbody></table></div>'


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{css}</style>
</head>
<body class="outcome-{outcome}">
<a class="skip" href="#trials">Skip to the table of trials</a>
<header>
<p class="model">{name}</p>
<h1>{headline}</h1>
<p class="verdict">{sentence}</p>
<p class="next">{next_step}</p>
<dl class="cards">{cards}</dl>
</header>
<main>
<noscript><p class="note">The charts and the table of trials need JavaScript; result.json holds the same.</p></noscript>
{remarks}
<section id="pareto" hidden><h2>Accuracy against cost</h2>
<div class="controls"><label>Cost <select id="cost"></select></label></div>
<div class="chart" id="pareto-chart"></div></section>
<section id="sensitivity" hidden><h2>What each op costs in accuracy</h2>
<p class="note">What returning one op (with the ops that fall back with it) to floating point gained.</p>
<div class="controls"><label>Order <select id="order"><option value="rank">most important first</option>\
<option value="graph">as in the graph</option></select></label></div>
<div class="chart" id="sensitivity-chart"></div></section>
<section><h2>Floating point</h2>{fallback}</section>
<section id="timeline" hidden><h2>Who did what, when</h2><div class="chart" id="timeline-chart"></div></section>
<section><h2>Stages</h2>{stages}</section>
<section id="diagnosis" hidden><h2>Distributions</h2>
<p class="note">Tensors on calibration data, the ops with the lowest SQNR first; counts on a logarithmic scale; \
dashed: the range that is quantized.</p>
<div class="chart grid" id="diagnosis-charts"></div></section>
<section id="trials" hidden><h2>Trials</h2>
<div class="controls"><label>Filter <input id="filter" type="search" placeholder="stage, op, recipe, reason"></label>
<label>Verdict <select id="verdict"><option value="">all</option></select></label>
<span id="count" role="status"></span></div>
<div class="scroll"><table id="trial-table"><thead></thead><tbody></tbody></table></div></section>
<section><h2>Settings</h2><details><summary>Everything that decides about the results</summary>{settings}</details>
<h3>Versions</h3>{versions}<h3>Hosts</h3>{hosts}<h3>Reproduce</h3>{reproduce}</section>
</main>
<footer>{written}</footer>
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="data">{data}</script>
<script>{js}</script>
</body>
</html>
"""

__all__ = ["render"]
