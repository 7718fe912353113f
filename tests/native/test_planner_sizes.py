"""Plans of tables on both sides of every size at which the planner changes its way."""

from __future__ import annotations

import numpy as np
import pytest
from random_batches import assert_valid

from vllm_relational import native
from vllm_relational.plan import plan_tree
from vllm_relational.plan.objective import hit_tokens
from vllm_relational.records import PlanInput

pytestmark = pytest.mark.skipif(not native.AVAILABLE, reason="native code was not built")


def keyed_table(num_rows: int, groups: list[int]) -> PlanInput:
    """A key of its own a row, and columns of so many values each, of ten tokens; the first decides the others."""
    row = np.arange(num_rows, dtype=np.int32)
    codes = [row, *(row % groups[0] % size for size in groups)]
    return PlanInput(np.array(codes, np.int32), (np.full(num_rows, 3), *(np.full(size, 10) for size in groups)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_rows", "groups"),
    [(50_000, [500]), (50_001, [500]), (60_000, [500, 100]), (66_667, [500, 100, 20]), (200_001, [500])],
)
def test_many_rows_of_few_columns(num_rows, groups):
    """Over 50,000 rows there is one starting tree, of up to 200,000 cells four contend: fewer than four there are."""
    batch = keyed_table(num_rows, groups)
    plan = plan_tree(batch, 0.02)
    assert_valid(batch, plan)
    assert hit_tokens(batch, plan) == sum(10 * (num_rows - size) for size in groups)
