"""The audit's page: what was tested, by which rule, what was found, and the worst cases; failures first."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import colormaps
from matplotlib.colors import to_hex

from devil_pipe.pipeline.audit_page.drawing import curve, interval, number_text
from devil_pipe.pipeline.report.page import TEMPLATES as REPORT
from devil_pipe.stages.audit.album import SCALE
from devil_pipe.stages.audit.findings import Verdict
from devil_pipe.stages.audit.run import Report
from devil_pipe.stages.common.files import write_text_atomic

TEMPLATES = Path(__file__).parent / "templates"


def write(report: Report, folder: Path) -> Path:
    """Write index.html beside the audit's pictures; returns where it is."""
    path = folder / "index.html"
    write_text_atomic(path, render(report))
    return path


def render(report: Report) -> str:
    """The page's HTML; it asks nothing of a network, and the same findings give the same bytes."""
    script = (REPORT / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    counts = {verdict: sum(item.verdict is verdict for item in report.findings) for verdict in Verdict}
    shades = [to_hex(colormaps[SCALE.colours](place / 8)) for place in range(9)]
    return (
        _environment()
        .get_template("audit.html.j2")
        .render(
            report=report,
            facts=report.facts,
            findings=report.findings,
            failed=[item for item in report.findings if item.verdict is Verdict.FAIL],
            passed=counts[Verdict.PASS],
            judged=counts[Verdict.PASS] + counts[Verdict.FAIL],
            unjudged=counts[Verdict.SHOWN] + counts[Verdict.NOT_RUN],
            script=Markup(script),
            script_digest=digest,
            gradient=", ".join(shades),
            zero=50,
            nats=SCALE.nats,
        )
    )


def _environment() -> Environment:
    """Jinja with escaping always on; the report's style sheet is ours."""
    env = Environment(
        autoescape=True,
        loader=FileSystemLoader([TEMPLATES, REPORT]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["address"] = quote
    env.filters["code"] = _code
    env.filters["css"] = lambda verdict: verdict.value.replace(" ", "-")
    env.globals["number"] = number_text
    env.globals["interval_figure"] = interval
    env.globals["curve_figure"] = curve
    return env


def _code(text: str) -> Markup:
    """A text in which `…` is set as code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts)
    )
