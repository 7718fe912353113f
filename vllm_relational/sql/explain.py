"""EXPLAIN: the forecast of a statement as numbers and as a text; nothing is sent to a model."""

from __future__ import annotations

import dataclasses

from vllm_relational.sql.forecast import Plan, forecast_tree
from vllm_relational.sql.job import Job
from vllm_relational.sql.passes.layout import choose_layouts
from vllm_relational.sql.prepare import bind, prepared, rehearse, unread


def forecast(job: Job) -> Plan:
    """Plan a statement without asking. Raises ``SQLError`` as running it would."""
    tree, notes = prepared(job)
    rehearsal = job.planner()
    bind(job, rehearse(rehearsal, tree))
    chosen = choose_layouts(job, tree, rehearsal.operators)
    plan = chosen.plan or forecast_tree(chosen.job, tree)
    misspelt = tuple(unread(job, rehearsal.operators))
    return dataclasses.replace(plan, notes=(*notes, *chosen.notes), unread=misspelt)


def explain(job: Job) -> str:
    """The plan as a tree, for a terminal."""
    from vllm_relational.sql.explain_text import render_plan

    return render_plan(forecast(job))
