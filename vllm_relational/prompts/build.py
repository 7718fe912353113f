"""Prompts from segments: the system prompt, then the question and the row as JSON, one field a line.

Layout of the row (arXiv 2403.05821 v2, section 5, gives rows as JSON)::

    {
    "name": "Quiet room",
    "comments": "Lovely!",
    }

Each line ends with a comma, the last one too, so that a field's tokens are the same wherever the field stands; each
line ends with a newline, where the tokenizers at hand begin a new token whatever follows, so that a prompt is the
concatenation of segments that were tokenised once per distinct cell.

The question stands before the row, where all prompts share it, or behind: then every prompt has the question for
itself, but the next question over the same rows finds their tokens in the cache. What is behind begins with the brace
that closes the row and an empty line. No cell can feign that: in a JSON text there is no line break.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import numpy as np

from vllm_relational.config import QUESTION_FIRST, Layout
from vllm_relational.prompts.template import Question, answer_rule
from vllm_relational.prompts.tokenizer import Tokenizer
from vllm_relational.records import AnswerFormat, EncodedTable, Plan, Prompt, PromptSegments

MakePrompts = Callable[[Plan, np.ndarray, np.ndarray], Iterator[Prompt]]
"""(plan, codes, keys) -> prompts in planned order, see ``PromptBuilder.token_prompts``."""
# Rows whose joined segments are compared with the tokens of their whole text.
BORDER_SAMPLE = 32


class PromptBuilder:
    """All prompts of one query.

    segments: the token ids of every piece; a prompt's length is exact when ``counts`` is 'exact'.
    """

    def __init__(
        self,
        question: Question,
        table: EncodedTable,
        answer_format: AnswerFormat,
        system: str,
        tokenizer: Tokenizer,
        layout: Layout = QUESTION_FIRST,
    ) -> None:
        self._table = table
        self._tokenizer = tokenizer
        self._system = system
        asked = "\n".join(filter(None, [question.instruction, answer_rule(answer_format)]))
        first = layout == QUESTION_FIRST
        self._before, self._after = (f"{asked}\n\n{{\n", "}") if first else ("{\n", f"}}\n\n{asked}")
        self._names = [json.dumps(name, ensure_ascii=False) for name in table.names]
        head, tail = tokenizer.chat_frame(system, self._before, self._after)
        self.segments = PromptSegments(
            header=tokenizer.encode_frame(head, starts_prompt=True),
            cells=tuple(tokenizer.encode_cells(self._lines(column)) for column in range(table.num_columns)),
            tail=tokenizer.encode_frame(tail, starts_prompt=False),
        )
        self.joins = tokenizer.counts != "exact" or self._segments_join()

    @property
    def counts(self) -> str:
        """How token counts come about: 'exact' or a phrase for the report."""
        return self._tokenizer.counts if self.joins else "approximate: segments tokenised apart"

    def lengths(self, codes: np.ndarray) -> np.ndarray:
        """Prompt tokens of each row; codes int32 ``[num_columns, n]`` -> int64 ``[n]``."""
        total = np.full(codes.shape[1], len(self.segments.header) + len(self.segments.tail), dtype=np.int64)
        for column, cells in enumerate(self.segments.cells):
            total += cells.lengths[codes[column]]
        return total

    def longest_field(self, codes: np.ndarray) -> tuple[str, int]:
        """Name and tokens of the longest field of one row; codes int32 ``[num_columns]``."""
        lengths = [int(cells.lengths[code]) for cells, code in zip(self.segments.cells, codes, strict=True)]
        column = int(np.argmax(lengths))
        return self._table.names[column], lengths[column]

    def maker(self, form: str) -> MakePrompts:
        """Makes prompts in the form that an engine reads, see ``Engine.prompt_form``."""
        return self.token_prompts if form == "token_ids" else self.message_prompts

    def token_prompts(self, plan: Plan, codes: np.ndarray, keys: np.ndarray) -> Iterator[Prompt]:
        """Prompts as token ids in planned order, one at a time.

        codes: int32 ``[num_columns, num_distinct]`` of the planned rows; keys: int64 ``[num_distinct]``.
        """
        encode = self._joined_ids if self.joins else self._whole_ids
        for row, fields in zip(plan.rows.tolist(), plan.fields, strict=True):
            yield Prompt(key=int(keys[row]), token_ids=encode(codes[:, row], fields))

    def message_prompts(self, plan: Plan, codes: np.ndarray, keys: np.ndarray) -> Iterator[Prompt]:
        """The same prompts as chat messages, for engines that apply the chat template themselves."""
        for row, fields in zip(plan.rows.tolist(), plan.fields, strict=True):
            user = f"{self._before}{self._row_text(codes[:, row], fields)}{self._after}"
            yield Prompt(key=int(keys[row]), system=self._system, user=user)

    def _joined_ids(self, codes: np.ndarray, fields: np.ndarray) -> list[int]:
        cells = self._cell_tokens(codes, fields)
        ids: list[int] = np.concatenate([self.segments.header, *cells, self.segments.tail]).tolist()
        return ids

    def _cell_tokens(self, codes: np.ndarray, fields: np.ndarray) -> list[np.ndarray]:
        pieces = []
        for column in fields.tolist():
            cells, code = self.segments.cells[column], int(codes[column])
            pieces.append(cells.tokens[cells.offsets[code] : cells.offsets[code + 1]])
        return pieces

    def _whole_ids(self, codes: np.ndarray, fields: np.ndarray) -> list[int]:
        row = self._tokenizer.encode_cells([self._row_text(codes, fields)]).tokens
        ids: list[int] = np.concatenate([self.segments.header, row, self.segments.tail]).tolist()
        return ids

    def _row_text(self, codes: np.ndarray, fields: np.ndarray) -> str:
        return "".join(self._line(column, int(codes[column])) for column in fields.tolist())

    def _lines(self, column: int) -> Iterator[str]:
        return (self._line(column, code) for code in range(len(self._table.values[column])))

    def _line(self, column: int, code: int) -> str:
        return f"{self._names[column]}: {self._table.values[column][code]},\n"

    def _segments_join(self) -> bool:
        """Whether joined segments are the tokens of the whole text, tried on rows spread over the table.

        Where they are not (tokenizers that put a mark before every text), prompts are tokenised whole, row by row.
        """
        rows = np.linspace(0, self._table.num_rows - 1, num=min(BORDER_SAMPLE, self._table.num_rows), dtype=np.int64)
        complete = [row for row in np.unique(rows).tolist() if (self._table.codes[:, row] >= 0).all()]
        fields = np.arange(self._table.num_columns)
        before, after = self._tokenizer.encode_cells([self._before]), self._tokenizer.encode_cells([self._after])
        for row in complete:
            codes = self._table.codes[:, row]
            text = f"{self._before}{self._row_text(codes, fields)}{self._after}"
            joined = np.concatenate([before.tokens, *self._cell_tokens(codes, fields), after.tokens])
            if not np.array_equal(self._tokenizer.encode_cells([text]).tokens, joined):
                return False
        return True
