"""Prompts joined from segments are the prompts a tokenizer would make of the whole text."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from how_many import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_relational.prompts import FourByteEstimate, PromptBuilder, load_tokenizer, parse_template
from vllm_relational.records import Choice, FreeText, Plan, TokenSegments
from vllm_relational.table import encode_columns

SYSTEM = "Answer about the record."
NASTY = ["<|end|>", "<|assistant|>\n", '"', "\\", "\n", "\r\n", "\t", "\x00", "\x7f", "\u2028", "\u0085", " ", ",\n"]
texts = st.text(max_size=8) | st.lists(st.sampled_from(NASTY), max_size=4).map("".join)
layouts = st.sampled_from(["question-first", "row-first"])
rows = st.lists(st.tuples(texts, st.integers(), st.lists(texts, max_size=2)), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return load_tokenizer(str(tokenizer_folder))


def builder_of(
    columns: dict,
    tokenizer,
    template: str = "Is {*} kind?",
    answer_format=FreeText(),  # noqa: B008
    layout: str = "question-first",
) -> tuple:
    table = pa.table(columns)
    question = parse_template(template, table.column_names)
    encoded = encode_columns(table, question.columns)
    return PromptBuilder(question, encoded, answer_format, SYSTEM, tokenizer, layout), encoded


def columns_of(rows: list[tuple]) -> dict:
    kinds = (pa.string(), pa.string(), pa.list_(pa.string()))
    cells = [list(column) for column in zip(*rows, strict=True)]
    cells[1] = [str(number) for number in cells[1]]
    return {name: pa.array(column, kind) for name, column, kind in zip(("a", "b c", 'd"é'), cells, kinds, strict=True)}


def plan_of(encoded, seed: int) -> Plan:
    """A random order of rows and, row by row, of fields."""
    random = np.random.default_rng(seed)
    fields = [random.permutation(encoded.num_columns) for _ in range(encoded.num_rows)]
    return Plan("random", random.permutation(encoded.num_rows), np.array(fields, np.int32))


@settings(deadline=None, max_examples=examples(60))
@given(rows=rows, seed=st.integers(0, 9), layout=layouts)
def test_joined_segments_are_the_tokens_of_the_whole_text(tokenizer, rows, seed, layout):
    builder, encoded = builder_of(columns_of(rows), tokenizer, layout=layout)
    assert builder.joins and builder.counts == "exact"
    plan, keys = plan_of(encoded, seed), np.arange(encoded.num_rows)
    hf = tokenizer._hf
    specials = [hf.convert_tokens_to_ids(marker) for marker in ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")]
    by_message = builder.message_prompts(plan, encoded.codes, keys)
    for prompt, message in zip(builder.token_prompts(plan, encoded.codes, keys), by_message, strict=True):
        ids = list(prompt.token_ids)
        assert prompt.key == message.key
        chat = f"<|system|>\n{SYSTEM}<|end|>\n<|user|>\n{message.user}<|end|>\n<|assistant|>\n"
        assert hf.decode(ids) == chat
        assert Counter(token for token in ids if token in specials) == dict.fromkeys(specials, 1) | {specials[-1]: 2}
        whole = tokenizer.encode_cells([message.user]).tokens.tolist()
        start = len(tokenizer.encode_frame(chat[: chat.index(message.user)], starts_prompt=True))
        assert ids[start : start + len(whole)] == whole
        assert len(ids) == builder.lengths(encoded.codes)[prompt.key]


@settings(deadline=None, max_examples=examples(30))
@given(rows=rows)
def test_field_order_changes_the_order_of_lines_only(rows):
    builder, encoded = builder_of(columns_of(rows), FourByteEstimate())
    keys = np.arange(encoded.num_rows)

    def lines(seed: int) -> dict:
        prompts = builder.message_prompts(plan_of(encoded, seed), encoded.codes, keys)
        return {prompt.key: Counter(prompt.user.split("\n")) for prompt in prompts}

    assert lines(0) == lines(1)


@settings(deadline=None, max_examples=examples(30))
@given(rows=rows)
def test_the_row_in_a_prompt_is_json_of_the_record(rows):
    columns = columns_of(rows)
    builder, encoded = builder_of(columns, FourByteEstimate())
    prompts = builder.message_prompts(plan_of(encoded, 3), encoded.codes, np.arange(encoded.num_rows))
    table = pa.table(columns).to_pylist()
    for prompt in prompts:
        body = prompt.user.partition("\n\n{\n")[2]
        assert json.loads("{" + body.removesuffix(",\n}") + "}") == table[prompt.key]


@settings(deadline=None, max_examples=examples(30))
@given(rows=rows, seed=st.integers(0, 9))
def test_with_the_row_first_prompts_of_two_questions_begin_with_the_same_tokens(tokenizer, rows, seed):
    """Up to the line that closes the row, whatever is asked and however it is answered."""
    columns = columns_of(rows)
    one, encoded = builder_of(columns, tokenizer, layout="row-first")
    other, _ = builder_of(columns, tokenizer, '{a}, {b c} or {d"é}?', Choice(("x", "y")), "row-first")
    plan, keys = plan_of(encoded, seed), np.arange(encoded.num_rows)
    both = zip(*(builder.token_prompts(plan, encoded.codes, keys) for builder in (one, other)), strict=True)
    tails = [len(builder.segments.tail) for builder in (one, other)]
    for first, second in both:
        row = list(first.token_ids)[: -tails[0]]
        assert row == list(second.token_ids)[: -tails[1]] and len(row) > len(one.segments.header)


@settings(deadline=None, max_examples=examples(30))
@given(rows=rows)
def test_no_cell_closes_the_row(rows):
    builder, encoded = builder_of(columns_of(rows), FourByteEstimate(), layout="row-first")
    for prompt in builder.message_prompts(plan_of(encoded, 1), encoded.codes, np.arange(encoded.num_rows)):
        assert prompt.user.partition("\n}\n\n")[2] == "Is the record kind?"


def test_the_shape_of_a_prompt_with_the_row_first():
    builder, encoded = builder_of(
        {"name": ["Quiet"], "n": [4]}, FourByteEstimate(), "Is {name} good?", Choice(("y", "n")), "row-first"
    )
    plan = Plan("original", np.array([0]), np.array([[0]], np.int32))
    (prompt,) = builder.message_prompts(plan, encoded.codes, np.array([7]))
    assert prompt.user == '{\n"name": "Quiet",\n}\n\nIs "name" good?\nAnswer y or n.'


def test_the_shape_of_a_prompt():
    builder, encoded = builder_of(
        {"name": ["Quiet"], "n": [4]}, FourByteEstimate(), "Is {name} good?", Choice(("y", "n"))
    )
    plan = Plan("original", np.array([0]), np.array([[0]], np.int32))
    (prompt,) = builder.message_prompts(plan, encoded.codes, np.array([7]))
    assert prompt.key == 7 and prompt.system == SYSTEM
    assert prompt.user == 'Is "name" good?\nAnswer y or n.\n\n{\n"name": "Quiet",\n}'


class MarkBeforeEveryText:
    """Like SentencePiece tokenizers: every text starts with token 0, so segments do not join."""

    counts = "exact"

    def chat_frame(self, system: str, before: str, after: str) -> tuple[str, str]:
        return before, after

    def encode_frame(self, text: str, starts_prompt: bool) -> np.ndarray:
        return self.encode_cells([text]).tokens

    def encode_cells(self, texts) -> TokenSegments:
        ids = [np.array([0, *text.encode()], np.int32) for text in texts]
        offsets = np.cumsum([0, *(len(one) for one in ids)], dtype=np.int64)
        return TokenSegments(np.concatenate([np.empty(0, np.int32), *ids]), offsets)


def test_rows_are_tokenised_whole_where_segments_do_not_join():
    builder, encoded = builder_of({"a": ["x", "y"], "b": ["z", "z"]}, MarkBeforeEveryText())
    assert not builder.joins
    assert builder.counts.startswith("approximate")
    plan = Plan("swapped", np.array([1, 0]), np.array([[1, 0], [0, 1]], np.int32))
    row = next(iter(builder.token_prompts(plan, encoded.codes, np.arange(2)))).token_ids
    assert bytes(row).split(b"\0")[2] == b'"b": "z",\n"a": "y",\n'


def test_the_longest_field_is_named():
    builder, encoded = builder_of({"a": ["x"], "long": ["x" * 400]}, FourByteEstimate())
    name, tokens = builder.longest_field(encoded.codes[:, 0])
    assert name == "long" and tokens > 100
