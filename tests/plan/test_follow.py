"""Rows that follow others: their leading fields are those of the row followed, in its order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.plan.follow import backwards, follow, track
from vllm_relational.plan.original import plan_original
from vllm_relational.records import EncodedTable, Plan, PlanInput, PromptBatch, PromptSegments, TokenSegments

NAMES = "abcd"
NOTHING = np.empty(0, np.int32)
rows = st.lists(st.fixed_dictionaries({name: st.sampled_from("xyz") for name in NAMES}), min_size=1, max_size=8)
reads = st.permutations(NAMES).flatmap(lambda names: st.integers(1, 4).map(lambda count: tuple(names[:count])))


def encoded(records: list[dict], names: tuple[str, ...]) -> EncodedTable:
    values = [list(dict.fromkeys(record[name] for record in records)) for name in names]
    codes = [[known.index(record[name]) for record in records] for name, known in zip(names, values, strict=True)]
    return EncodedTable(names, np.array(codes, np.int32).reshape(len(names), len(records)), tuple(values))


def batch_of(table: EncodedTable) -> PlanInput:
    lengths = tuple(np.arange(1, len(values) + 1, dtype=np.int64) for values in table.values)
    return PlanInput(table.codes, lengths)


def asked_of(table: EncodedTable, seed: int) -> PromptBatch:
    """The rows in a random order, their fields too."""
    random = np.random.default_rng(seed)
    fields = np.array([random.permutation(table.num_columns) for _ in range(table.num_rows)], np.int32)
    cells = tuple(TokenSegments(NOTHING, np.zeros(len(values) + 1, np.int64)) for values in table.values)
    plan = Plan("random", random.permutation(table.num_rows), fields)
    return PromptBatch(table, PromptSegments(NOTHING, cells, NOTHING), table.codes, plan, True)


def lines(table: EncodedTable, codes: np.ndarray, fields: np.ndarray) -> list[tuple[str, str]]:
    return [(table.names[column], table.values[column][codes[column]]) for column in fields.tolist()]


def common(one: list, other: list) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@given(first=rows, second=rows, one=reads, other=reads, seed=st.integers(0, 9))
def test_a_row_that_agrees_with_an_earlier_one_begins_like_it(first, second, one, other, seed):
    """As far as the later question reads the leading fields of the earlier one."""
    earlier, table = encoded(first, one), encoded(second, other)
    asked, batch, own = asked_of(earlier, seed), batch_of(table), plan_original(batch_of(table))
    shared = [name for name in one if name in other]
    before = {}
    for row, fields in zip(asked.plan.rows.tolist(), asked.plan.fields, strict=True):
        written = lines(earlier, earlier.codes[:, row], fields)
        lead = next((i for i, (name, _) in enumerate(written) if name not in shared), len(written))
        before.setdefault(tuple(first[row][name] for name in shared), []).append(written[:lead])

    plan = follow(batch, own, [track(asked, table)])

    agree = [tuple(row[name] for name in shared) in before for row in second]
    if plan is None:
        assert not any(
            shared and agree[row] and any(before[tuple(second[row][n] for n in shared)]) for row in range(len(second))
        )
        return
    assert sorted(plan.rows.tolist()) == list(range(len(second)))
    assert all(sorted(fields) == list(range(len(other))) for fields in plan.fields.tolist())
    for row, fields in zip(plan.rows.tolist(), plan.fields, strict=True):
        written = lines(table, table.codes[:, row], fields)
        leads = before.get(tuple(second[row][name] for name in shared), []) if shared else []
        sizes = {name: 1 + table.values[table.names.index(name)].index(second[row][name]) for name in shared}
        most = max((sum(sizes[name] for name, _ in lead) for lead in leads), default=0)
        got = max((sum(sizes[n] for n, _ in lead) for lead in leads if common(written, lead) == len(lead)), default=0)
        assert got == most


def test_fields_of_the_later_question_alone_come_after_and_rows_keep_the_earlier_order():
    records = [{"a": str(i), "b": "same", "c": str(i % 2)} for i in range(4)]
    earlier, table = encoded(records, ("a", "b")), encoded(records[1:], ("c", "b", "a"))
    asked = asked_of(earlier, 0)
    order = [3, 0, 2, 1]
    fields = np.array([[1, 0]] * 4, np.int32)  # b, then a
    asked = PromptBatch(earlier, asked.segments, asked.codes, Plan("by hand", np.array(order), fields), True)
    plan = follow(batch_of(table), plan_original(batch_of(table)), [track(asked, table)])
    assert plan.rows.tolist() == [2, 1, 0]  # rows 3, 2, 1 of the earlier table
    assert plan.fields.tolist() == [[1, 2, 0]] * 3


def test_rows_that_follow_nothing_come_last_as_their_own_plan_has_them():
    known, new = [{"a": "k", "b": "1"}], [{"a": "n", "b": "2"}, {"a": "k", "b": "1"}]
    table = encoded(new, ("b", "a"))
    plan = follow(batch_of(table), plan_original(batch_of(table)), [track(asked_of(encoded(known, ("a",)), 0), table)])
    # Row 1 agrees in a, the only field that both read.
    assert plan.rows.tolist() == [1, 0] and plan.fields.tolist() == [[1, 0], [0, 1]]
    assert backwards(plan).rows.tolist() == [0, 1] and backwards(plan).fields.tolist() == [[0, 1], [1, 0]]


def test_of_two_batches_the_one_with_more_in_common_is_followed():
    records = [{"a": "x", "b": "y", "c": "z"}]
    table = encoded(records, ("a", "b", "c"))
    batches = [asked_of(encoded(records, names), 0) for names in (("c",), ("b", "a"), ("a",))]
    plan = follow(batch_of(table), plan_original(batch_of(table)), [track(asked, table) for asked in batches])
    assert set(plan.fields[0, :2].tolist()) == {0, 1} and plan.fields[0, 2] == 2


def test_nothing_in_common_is_nothing_to_follow():
    table = encoded([{"a": "x"}], ("a",))
    earlier = encoded([{"b": "x"}], ("b",))
    batch = batch_of(table)
    assert follow(batch, plan_original(batch), [track(asked_of(earlier, 0), table)]) is None
    assert follow(batch, plan_original(batch), []) is None
