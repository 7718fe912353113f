"""What a run did, as one HTML file: inline style and inline SVG, nothing fetched from elsewhere.

The charts are drawn by matplotlib, loaded on first use. Their text takes the colour and the font of the page, so that
they follow its light or dark scheme.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vllm_relational.files.atomic import write_whole
from vllm_relational.records import CacheForecast, RelationalError, RunReport
from vllm_relational.results.report_facts import count, percent
from vllm_relational.results.report_text import (
    headline,
    is_dry_run,
    measured_forecast,
    ratio,
    saving,
    seconds,
    sections,
    token_note,
    why_not_measured,
)
from vllm_relational.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

TEMPLATE = "report.html.j2"

# Okabe and Ito's palette, told apart by readers with any colour vision and on light and dark ground.
ORANGE, SKY, BLUE, GREEN, GREY = "#E69F00", "#56B4E9", "#0072B2", "#009E73", "#999999"
INK = "#010203"  # a colour that nothing else has: replaced by the page's text colour
CHART_WIDTH, BAR_HEIGHT, FRAME_HEIGHT = 5.0, 0.34, 0.25  # inches


@dataclass(frozen=True)
class Chart:
    """A finding, what the chart shows, and the drawing."""

    finding: str
    caption: str
    svg: Markup


def write_html(report: RunReport, path: str | Path) -> None:
    """Write the report as a self-contained page. Raises RelationalError if matplotlib is not installed."""
    charts = draw_charts(report)
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(TEMPLATE)
    text = page.render(
        report=report,
        headline=headline(report),
        tiles=tiles(report),
        charts=charts,
        sections=sections(report),
        note=token_note(report),
    )
    write_whole(Path(path), printable(text, lines=True).encode("utf-8", "replace"))


def tiles(report: RunReport) -> list[tuple[str, str]]:
    """The few numbers at the top: value and label."""
    factor, rate, measured = saving(report), report.rows_per_second, report.measured_hit_rate
    found = []
    if factor is not None:
        times, word = ratio(factor)
        found.append((times, f"{word} prompt tokens computed than in original order"))
    if measured is None:
        found.append((percent(report.predicted.hit_rate), f"hit rate predicted ({why_not_measured(report)})"))
    else:
        found.append((percent(measured), "hit rate measured"))
    if rate is not None:
        found.append((f"{rate:,.1f}", "distinct rows a second"))
    asked = "distinct rows to ask" if is_dry_run(report) else "distinct rows asked"
    return [*found, (count(report.num_asked), f"{asked}, for {count(report.num_rows)} rows")]


# --------------------------------------------------------------------------------------------------------- charts
def draw_charts(report: RunReport) -> list[Chart]:
    """The three charts; one that has nothing to show is left out."""
    _require_matplotlib()
    charts = [hit_rate_chart(report), token_chart(report)] if report.predicted.prompt_tokens else []
    return charts + ([time_chart(report)] if any(report.stage_seconds.values()) else [])


def hit_rate_chart(report: RunReport) -> Chart:
    """Share of prompt tokens served from the KV cache: both forecasts, the measurement, the ceiling."""
    bars = [
        ("original order,\npredicted", report.original.hit_rate, ORANGE),
        ("planned order,\npredicted", report.predicted.hit_rate, SKY),
    ]
    if report.measured_hit_rate is not None:
        bars.append(("measured", report.measured_hit_rate, BLUE))
    bars.append(("ceiling of any order", report.ceiling, GREY))

    def draw(axes: Axes) -> None:
        names, rates, colours = zip(*bars, strict=True)
        drawn = axes.barh(names, rates, color=colours, height=0.62)
        axes.bar_label(drawn, labels=[percent(rate) for rate in rates], padding=4, color=INK)
        axes.set_xlim(0, 1.15)

    return Chart(hit_rate_finding(report), "Share of prompt tokens served from the KV cache", _svg(draw, len(bars)))


def hit_rate_finding(report: RunReport) -> str:
    """What the hit rate chart shows, as a sentence."""
    ours = measured_forecast(report) or report.predicted
    verb = "is" if measured_forecast(report) else "is predicted to be"
    return f"The hit rate {verb} {percent(ours.hit_rate)}; in original order {percent(report.original.hit_rate)}"


def token_chart(report: RunReport) -> Chart:
    """Prompt tokens computed and served from the cache, side by side on one scale."""
    forecasts = [("original order,\npredicted", report.original), ("planned order,\npredicted", report.predicted)]
    if measured := measured_forecast(report):
        forecasts.append(("measured", measured))

    def draw(axes: Axes) -> None:
        names = [name for name, _ in forecasts]
        computed = [forecast.computed_tokens for _, forecast in forecasts]
        axes.barh(names, computed, color=ORANGE, height=0.62, label="computed")
        cached = [forecast.hit_tokens for _, forecast in forecasts]
        axes.barh(names, cached, left=computed, color=BLUE, height=0.62, label="served from cache")
        _label_ends(axes, [forecast for _, forecast in forecasts])
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0, labelcolor=INK)

    return Chart(token_finding(report), "Prompt tokens computed, of all", _svg(draw, len(forecasts) + 0.8))


def token_finding(report: RunReport) -> str:
    """What the token chart shows, as a sentence."""
    measured = measured_forecast(report)
    ours = measured or report.predicted
    verb = "are" if measured else "are predicted to be"
    tokens = f"{short(ours.computed_tokens)} of {short(ours.prompt_tokens)} prompt tokens {verb} computed"
    return f"{tokens}; in original order {short(report.original.computed_tokens)}"


def _label_ends(axes: Axes, forecasts: list[CacheForecast]) -> None:
    longest = max(forecast.prompt_tokens for forecast in forecasts)
    axes.set_xlim(0, 1.42 * longest)
    for row, forecast in enumerate(forecasts):
        label = f"{short(forecast.computed_tokens)} of {short(forecast.prompt_tokens)}"
        axes.annotate(label, (forecast.prompt_tokens, row), (4, 0), textcoords="offset points", va="center", color=INK)


def time_chart(report: RunReport) -> Chart:
    """Seconds spent in each stage, in the order in which they ran."""
    stages = list(report.stage_seconds.items())

    def draw(axes: Axes) -> None:
        names, spent = zip(*stages, strict=True)
        drawn = axes.barh(names, spent, color=[BLUE if name == "ask" else GREEN for name in names], height=0.62)
        axes.bar_label(drawn, labels=[seconds(value) for value in spent], padding=4, color=INK)
        axes.set_xlim(0, 1.2 * max(spent))

    longest, spent = max(stages, key=lambda stage: stage[1])
    share = spent / sum(report.stage_seconds.values())
    return Chart(f"'{longest}' takes {percent(share)} of the time", "Seconds in each stage", _svg(draw, len(stages)))


def short(number: int) -> str:
    """A count in at most four digits and a unit: 950, 12.3K, 4.56M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 1000 * size else f"{number / size:.0f}{unit}"
    return str(number)


# ----------------------------------------------------------------------------------------------------- matplotlib
def _require_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        message = "the HTML report draws with matplotlib: pip install 'vllm-relational[report]'"
        raise RelationalError(message) from error


def _svg(draw: Callable[[Axes], None], num_bars: float) -> Markup:
    """A horizontal bar chart as an ``<svg>`` element; the first bar is on top."""
    from matplotlib.figure import Figure

    with _chart_style(salt=draw.__qualname__):
        figure = Figure(figsize=(CHART_WIDTH, BAR_HEIGHT * num_bars + FRAME_HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.invert_yaxis()
        axes.xaxis.set_visible(False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(left=False)
        out = StringIO()
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    return _inline(out.getvalue())


@contextmanager
def _chart_style(salt: str) -> Iterator[None]:
    """Real text in the page's font and colour; element ids that are the same on every run and differ between charts."""
    import matplotlib as mpl

    settings: Any = dict.fromkeys(("text.color", "axes.edgecolor", "ytick.color"), INK)
    settings |= {"svg.fonttype": "none", "svg.hashsalt": salt, "text.parse_math": False}
    with mpl.rc_context({**settings, "font.size": 10, "axes.linewidth": 0.5}):
        yield


def _inline(document: str) -> Markup:
    """The ``<svg>`` element alone: sized by the page, in its font and colour, without names that could meet others."""
    element = document[document.index("<svg") :].replace(INK, "currentColor")
    element = re.sub(r"<style.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r'(?<=<svg)[^>]*?( viewBox="[^"]*")[^>]*', r"\1", element, count=1)
    element = re.sub(r"font-family: [^;\"]*", "font-family: inherit", element)
    return Markup(re.sub(r'<g id="[^"]*"', "<g", element))
