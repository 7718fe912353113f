"""The prefix tree of the best plan as a page: an icicle plot that opens without a network.

plotly draws it and is loaded on first use; its script is part of the file. Cells of the table are data: they are
escaped for the page, for the script and for plotly's own markup.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vllm_relational.compare.planners import PlanComparison
from vllm_relational.compare.planners_text import (
    cell_text,
    dependency_lines,
    node_label,
    plural,
    rows_of,
    saved_tokens,
    sum_label,
)
from vllm_relational.files.atomic import write_whole
from vllm_relational.plan.prefix_view import ROOT, PrefixNode, prefix_tree
from vllm_relational.records import PlannedQuery, RelationalError
from vllm_relational.terminal import printable

TEMPLATE = "planners.html.j2"
# With the nodes that sum up others, at most 2,000: about a megabyte whatever the table.
TREE_LIMITS = {"max_nodes": 1000, "max_children": 60, "max_depth": 12}
LABEL_WIDTH, HOVER_WIDTH, HOVER_CELLS = 60, 90, 8
SHOWN_DEPENDENCIES = 100
LEVEL_HEIGHT, FRAME_HEIGHT, MAX_HEIGHT = 70, 60, 900  # pixels
# From all computed to all served, orange to blue as in the report: told apart by readers with any colour vision.
COLOURS = ("#f2cf8d", "#dfe3e6", "#0f5c94")


def write_page(comparison: PlanComparison, title: str, path: Path) -> None:
    """Write the best planner's prefix tree, its hit rate and the dependent columns as one page.

    title: what was planned, e.g. the name of the file. Raises ``RelationalError`` if plotly is not installed.
    """
    planned = comparison.planned
    nodes = prefix_tree(planned.batch, planned.plan, **TREE_LIMITS)
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template(TEMPLATE)
    text = page.render(
        title=printable(title),
        best=comparison.best,
        size=f"{planned.table.num_rows:,} rows, {nodes[0].num_rows:,} distinct",
        whole_cells=_share_saved(planned, nodes[0]),
        picture=_picture(planned, nodes),
        dependencies=dependency_lines(comparison.best.dependencies, SHOWN_DEPENDENCIES),
    )
    write_whole(path, text.encode("utf-8", "replace"))


def _picture(planned: PlannedQuery, nodes: tuple[PrefixNode, ...]) -> Markup:
    figure = icicle(planned, nodes)
    config = {"displayModeBar": False, "responsive": True}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=True, config=config, div_id="prefix-tree"))


def icicle(planned: PlannedQuery, nodes: tuple[PrefixNode, ...]) -> Any:
    """The nodes as a ``plotly`` figure: width is prompt tokens, colour the share of them served from the cache.

    A box stands for its rows from the end of the box above on, so empty space below a box is its own cells.
    Raises ``RelationalError`` if plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise RelationalError("the prefix tree is drawn with plotly: pip install 'vllm-relational[report]'") from error
    trace = go.Icicle(
        ids=[str(place) for place in range(len(nodes))],
        parents=["" if node.parent == ROOT else str(node.parent) for node in nodes],
        labels=[_plain(node_label(planned, node, LABEL_WIDTH)) for node in nodes],
        values=[_total_tokens(planned, node) for node in nodes],
        branchvalues="total",
        sort=False,
        text=[rows_of(node) for node in nodes],
        texttemplate="%{label}<br>%{text}",
        hovertext=[_hover(planned, node) for node in nodes],
        hovertemplate="%{hovertext}<extra></extra>",
        marker=_colours([_share_saved(planned, node) for node in nodes]),
        tiling={"orientation": "v", "pad": 0},
        pathbar={"visible": True},
    )
    levels = 1 + max(_depths(nodes))
    layout = {"height": min(LEVEL_HEIGHT * levels + FRAME_HEIGHT, MAX_HEIGHT), "paper_bgcolor": "rgba(0,0,0,0)"}
    hover = {"align": "left", "bgcolor": "#ffffff", "font": {"color": "#1d2329"}}
    places = {"margin": {"t": 30, "l": 0, "r": 0, "b": 5}, "uniformtext": {"minsize": 9, "mode": "hide"}}
    return go.Figure(trace, {**layout, **places, "hoverlabel": hover})


def _colours(shares: list[float]) -> dict[str, Any]:
    scale = [[place / (len(COLOURS) - 1), colour] for place, colour in enumerate(COLOURS)]
    bar = {"title": {"text": "served"}, "tickformat": ".0%", "thickness": 12}
    colours = {"colors": shares, "colorscale": scale, "cmin": 0, "cmax": 1, "showscale": True, "colorbar": bar}
    return {**colours, "line": {"color": "#ffffff", "width": 0.25}}


def _depths(nodes: tuple[PrefixNode, ...]) -> list[int]:
    depths: list[int] = []
    for node in nodes:
        depths.append(0 if node.parent == ROOT else depths[node.parent] + 1)
    return depths


def _total_tokens(planned: PlannedQuery, node: PrefixNode) -> int:
    header = planned.header_tokens * node.num_rows if node.parent == ROOT else 0
    return node.total_tokens + header


def _share_saved(planned: PlannedQuery, node: PrefixNode) -> float:
    """Of the tokens of this box and all below it."""
    saved = saved_tokens(planned, node) - node.saved + node.total_saved
    return round(saved / max(_total_tokens(planned, node), 1), 4)


def _hover(planned: PlannedQuery, node: PrefixNode) -> str:
    """The cells, one a line, then the numbers."""
    cells = [_plain(cell_text(planned, cell, HOVER_WIDTH)) for cell in node.cells[:HOVER_CELLS]]
    left = len(node.cells) - len(cells)
    if left:
        cells.append(f"and {left:,} more {plural('field', left)}")
    header = planned.header_tokens if node.parent == ROOT else 0
    if node.parent == ROOT:
        cells.insert(0, f"the question: {header:,} tokens")
    whole = f"{_total_tokens(planned, node):,} prompt tokens, {_share_saved(planned, node):.1%} served"
    if node.merged:
        return "<br>".join([sum_label(node), f"<b>{rows_of(node)}</b>", f"with all below: {whole}"])
    here = f"this box: {node.tokens + header:,} tokens a row, {saved_tokens(planned, node):,} tokens saved"
    return "<br>".join([*cells, f"<b>{rows_of(node)}</b>", here, f"with all below: {whole}"])


def _plain(text: str) -> str:
    """Text that plotly shows as it is: it reads some tags and entities."""
    return html.escape(text, quote=False)
