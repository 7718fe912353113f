"""EXPLAIN: the forecast of a statement as numbers and as a text; nothing is sent to a model."""

from __future__ import annotations

import dataclasses

from vllm_relational.sql.context import StatementContext
from vllm_relational.sql.forecast import StatementPlan, forecast_tree
from vllm_relational.sql.passes.layout import choose_layouts
from vllm_relational.sql.prepare import bind, prepared, rehearse, unread


def forecast(context: StatementContext) -> StatementPlan:
    """Plan a statement without asking. Raises ``SQLError`` as running it would."""
    tree, notes = prepared(context)
    rehearsal = context.planner()
    bind(context, rehearse(rehearsal, tree))
    chosen = choose_layouts(context, tree, rehearsal.operators)
    plan = chosen.plan or forecast_tree(chosen.context, tree)
    misspelt = tuple(unread(context, rehearsal.operators))
    return dataclasses.replace(plan, notes=(*notes, *chosen.notes), unread=misspelt)


def explain(context: StatementContext) -> str:
    """The plan as a tree, for a terminal."""
    from vllm_relational.sql.explain_text import render_plan

    return render_plan(forecast(context))
