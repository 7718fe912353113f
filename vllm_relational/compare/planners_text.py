"""A comparison of planners for a terminal, and the wording that it shares with the page of ``planning_html``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from vllm_relational.plan.prefix_view import ROOT, PrefixNode, prefix_tree
from vllm_relational.records import PlannedQuery
from vllm_relational.terminal import printable

if TYPE_CHECKING:
    from vllm_relational.compare.planners import NamedDependency, PlanComparison, PlanSummary

WIDTH, LABEL_WIDTH, GUIDE_WIDTH = 110, 66, 4
NAME_WIDTH, SHOWN_DEPENDENCIES = 30, 10
# Seven nodes and what each of them leaves out: 14 lines at most.
TREE_LIMITS = {"max_nodes": 7, "max_children": 4, "max_depth": 3, "min_rows": 2}


def render(comparison: PlanComparison) -> str:
    """The planners as a table, then the best one's field order, the top of its prefix tree, and dependent columns."""
    out = io.StringIO()
    console = Console(width=WIDTH, file=out, color_system=None, markup=False, emoji=False, highlight=False)
    best = comparison.best
    console.print(_facts(best, comparison.planned.batch.num_rows))
    console.print(_table(comparison.summaries))
    start = f"{best.planner}, fields of the first row asked: "
    console.print(start + listed([shorten(name, NAME_WIDTH) for name in best.field_order], WIDTH - len(start)))
    console.print("\nTokens saved by what rows share, in whole cells with a cache without limit; the lines add up.")
    console.print(_tree_heads(), _tree(comparison.planned), sep="\n")
    console.print("\nColumns found dependent:", *dependency_lines(best.dependencies), sep="\n  ")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _facts(best: PlanSummary, num_distinct: int) -> str:
    distinct = f" ({num_distinct:,} distinct)" if num_distinct < best.rows else ""
    size = f"{best.rows:,} {plural('row', best.rows)}{distinct} x {best.columns} {plural('column', best.columns)}"
    tokens = f"{best.prompt_tokens:,} prompt tokens ({best.token_counts})"
    repeated = f"{best.repeated_chars:.1%} of the characters stand in repeated cells"
    return f"{size}, {tokens}\nceiling of any order {best.ceiling:.1%} of tokens; {repeated}"


def _table(summaries: Sequence[PlanSummary]) -> Table:
    bounds = ["best eviction"] if summaries[0].hit_rate_bound is not None else []
    table = Table("planner", "hit rate", *bounds, "hit tokens", "in characters", "seconds")
    for summary in summaries:
        rates = [rate for rate in (summary.hit_rate, summary.hit_rate_bound) if rate is not None]
        cells = (*(f"{rate:.1%}" for rate in rates), f"{summary.hit_tokens:,}", f"{summary.hit_rate_chars:.1%}")
        table.add_row(summary.planner, *cells, f"{summary.seconds:.3f}")
    return table


# ------------------------------------------------------------------------------------------------ the prefix tree
def _tree(planned: PlannedQuery) -> Tree:
    nodes = prefix_tree(planned.batch, planned.plan, **TREE_LIMITS)
    drawn: list[tuple[Tree, int]] = []
    for node in nodes:
        if node.parent > 0 and node.merged and not node.saved:
            continue  # sums stand after all other nodes and have no children
        depth = 0 if node.parent == ROOT else drawn[node.parent][1] + 1
        line = Text(_line(planned, node, LABEL_WIDTH - GUIDE_WIDTH * depth), no_wrap=True)
        drawn.append((Tree(line) if node.parent == ROOT else drawn[node.parent][0].add(line), depth))
    return drawn[0][0]


def _tree_heads() -> str:
    return (
        f"{'shared by all rows of a branch':<{LABEL_WIDTH}}  {'distinct rows':>14}  {'tokens saved':>13}  {'of all':>6}"
    )


def _line(planned: PlannedQuery, node: PrefixNode, width: int) -> str:
    saved = saved_tokens(planned, node)
    share = saved / max(planned.report.predicted.prompt_tokens, 1)
    label = node_label(planned, node, width)
    return f"{set_cell_size(label, width)}  {rows_of(node):>14}  {saved:>13,}  {share:>6.1%}"


def saved_tokens(planned: PlannedQuery, node: PrefixNode) -> int:
    """Tokens that the node's own cells save; the root's with the header of the prompts."""
    header = planned.header_tokens if node.parent == ROOT else 0
    return node.saved + max(node.num_rows - 1, 0) * header


def node_label(planned: PlannedQuery, node: PrefixNode, width: int) -> str:
    """What the rows of a node share, in at most ``width`` columns of a terminal."""
    if node.merged:
        return sum_label(node)
    cells = [cell_text(planned, cell, width) for cell in node.cells]
    if node.parent == ROOT:
        cells.insert(0, "the question")
    return listed(cells, width, "field")


def sum_label(node: PrefixNode) -> str:
    """What a node is that sums up branches: with all below them, they are in its numbers."""
    if node.merged == node.num_rows:
        return "(rows that share nothing more)"
    return f"({node.merged:,} more {plural('branch', node.merged)})"


def rows_of(node: PrefixNode) -> str:
    """``1,234 rows``."""
    return f"{node.num_rows:,} {plural('row', node.num_rows)}"


def cell_text(planned: PlannedQuery, cell: tuple[int, int], width: int) -> str:
    """``name = value``, the name as it is and the value as JSON, both shortened."""
    column, code = cell
    name = shorten(planned.table.names[column], NAME_WIDTH)
    return f"{name} = {shorten(planned.table.values[column][code], max(width - len(name) - 3, 8))}"


# --------------------------------------------------------------------------------------------------- dependencies
def dependency_lines(dependencies: Sequence[NamedDependency], most: int = SHOWN_DEPENDENCIES) -> list[str]:
    """One line a dependency, the first ``most`` of them; 'none' where there is none."""
    lines = [_dependency_line(dependency) for dependency in dependencies[:most]]
    if len(dependencies) > most:
        lines.append(f"and {len(dependencies) - most:,} more")
    return lines or ["none"]


def _dependency_line(dependency: NamedDependency) -> str:
    determinants = [shorten(name, NAME_WIDTH) for name in dependency.determinants]
    line = listed(determinants, WIDTH // 2, joint=" = ")
    if dependency.dependents:
        dependents = [shorten(name, NAME_WIDTH) for name in dependency.dependents]
        line += f" -> {listed(dependents, WIDTH - 24 - len(line))}"
    if dependency.share < 1:
        return f"{line} ({int(dependency.share * 1000 + 1e-9) / 10:.1f}% of rows)"
    return f"{line} (exact)" if dependency.dependents else line


# ---------------------------------------------------------------------------------------------------------- texts
def listed(texts: Sequence[str], width: int, thing: str = "", joint: str = ", ") -> str:
    """The first of ``texts``, as many as fit into ``width`` columns of a terminal, at least one, and how many more."""
    whole = joint.join(texts[: width + 1])
    if len(texts) <= 1 or (len(texts) <= width and cell_len(whole) <= width):
        return whole
    fits = 1
    while fits < len(texts) and cell_len(joint.join(texts[: fits + 1])) + 18 <= width:
        fits += 1
    left = len(texts) - fits
    more = f"{left:,} more {plural(thing, left)}" if thing else f"{left:,} more"
    return f"{joint.join(texts[:fits])} and {more}"


def shorten(text: str, width: int) -> str:
    """The beginning of ``text`` in at most ``width`` columns of a terminal, without what could steer the terminal."""
    plain = printable(" ".join(text[: width + 1].splitlines()))
    return plain if cell_len(plain) <= width else f"{set_cell_size(plain, width - 1).rstrip()}…"


def plural(noun: str, number: int) -> str:
    """The noun as it stands after ``number``."""
    if number == 1:
        return noun
    return f"{noun}es" if noun.endswith("ch") else f"{noun}s"
