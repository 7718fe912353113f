"""Columns named in options: their place in the question, and what is said of names that are none."""

from __future__ import annotations

import pytest

from vllm_relational import RelationalError
from vllm_relational.prompts.columns import QuestionColumns
from vllm_relational.prompts.template import parse_template

TABLE = ["name", "city", "country", "stars"]


@pytest.fixture
def columns() -> QuestionColumns:
    return QuestionColumns(parse_template("{country} {city} {name}", TABLE), TABLE)


def test_the_place_is_that_in_the_question(columns):
    assert [columns.number(name, "pin") for name in ("country", "city", "name")] == [0, 1, 2]


@pytest.mark.parametrize(("name", "said"), [("stars", "does not use"), ("town", "town"), ("City", "City")])
def test_other_names_are_refused_with_the_option(columns, name, said):
    with pytest.raises(RelationalError, match=said) as error:
        columns.number(name, "pin")
    assert "pin" in str(error.value)


@pytest.mark.parametrize(
    ("groups", "pairs"),
    [
        ((), ()),
        ((("name",),), ()),
        ((("name", "country"),), ((0, 2),)),
        ((("name", "city", "country"), ("city", "country")), ((0, 1), (1, 2))),
    ],
)
def test_neighbours_of_a_group_in_original_order(columns, groups, pairs):
    assert columns.kept_pairs(groups) == pairs
