"""One LLM operator: a question over the distinct inputs that a block of SQL has for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from vllm_relational.config import DEFAULT_SYSTEM_PROMPT, QUESTION_FIRST, Layout, check_layout
from vllm_relational.records import EngineInfo, FreeText, JsonSchema, QueryResult, RunReport
from vllm_relational.sql.aggregate import reduce_groups
from vllm_relational.sql.blocks import KEY
from vllm_relational.sql.cost import Prices, Rates
from vllm_relational.sql.functions import Question
from vllm_relational.sql.passes.blocking import Candidates
from vllm_relational.sql.retrieve import Retrieval, Retrieves
from vllm_relational.sql.store import BLOCKED, OperatorTable, Store


class Asks(Protocol):
    """What is needed of ``RelationalLLM``; see there."""

    def run(self, table: Any, prompt: str, **options: Any) -> QueryResult:
        """Ask the prompt of every row."""

    def prepare(self, table: Any, prompt: str, **options: Any) -> Any:
        """Deduplicate and tokenise, ask nothing."""

    def expected_engine(self) -> EngineInfo:
        """The engine as it will most likely be."""


@dataclass(frozen=True)
class Settings:
    """How SQL asks.

    max_tokens:    the longest answer of LLM and LLM_AGG in tokens; ``max_json_tokens``: of LLM_EXTRACT.
    keeps_nulls:   a null argument is sent to the model as null; by default the answer is null and nothing is asked.
    system_prompt: the first message of every prompt.
    order:         the planner; None for the one of the LLM object.
    optimize:      False computes every call for all rows that SQL would compute it for, call by call.
    batch_rows:    rows before a LIMIT that are asked at least at once.
    sample_rows:   inputs a predicate that are asked first to estimate how many rows it keeps.
    candidates:    proposes pairs of a semantic join, see ``passes.blocking``; ``candidates_k`` a row of one side.
    audit_pairs:   pairs that were not proposed and are asked nevertheless, to estimate the recall.
    rates, prices: to show seconds and dollars beside tokens.
    layout:        of every prompt but those of LLM_AGG, 'question-first' or 'row-first'; None chooses by statement.
    max_pairs:     pairs of a semantic join that are asked at most where nothing proposes candidates.
    retriever:     searches for ``retrieve``; None for one that opens each index with the model that it names.
    """

    max_tokens: int = FreeText.max_tokens
    max_json_tokens: int = JsonSchema.max_tokens
    keeps_nulls: bool = False
    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    order: str | None = None
    optimize: bool = True
    sample_rows: int = 32
    batch_rows: int = 64
    max_pairs: int = 100_000
    candidates: Candidates | None = None
    candidates_k: int = 10
    audit_pairs: int = 64
    rates: Rates | None = None
    prices: Prices | None = None
    layout: Layout | None = None
    retriever: Retrieves | None = None

    def __post_init__(self) -> None:
        if self.layout is not None:
            check_layout(self.layout)

    def options(self, question: Question) -> dict[str, Any]:
        """The options of ``RelationalLLM.run`` for a question."""
        nulls = "keep" if self.keeps_nulls else "error"
        return {**question.options(), "nulls": nulls, "system_prompt": self.system_prompt, "order": self.order}


@dataclass
class Operator:
    """A question as a statement asks it.

    sql:     the call as it stands in the statement; question: what it asks, or for ``retrieve`` looks for.
    clause:  where it stands.
    table:   its answers.
    reports: of the runs that this statement needed.
    notes:   what the optimiser did.
    layout:  what its prompts begin with.
    places:  where in the statement's text the question stands.
    rows_in: rows of the block that needed an answer; distinct: inputs among them that differ.
    """

    sql: str
    clause: str
    question: Question | Retrieval
    table: OperatorTable
    settings: Settings
    reports: list[RunReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows_in: int = 0
    distinct: int = 0
    asked: int = 0
    places: set[int | None] = field(default_factory=set)
    layout: Layout = QUESTION_FIRST

    def options(self, question: Question) -> dict[str, Any]:
        """The options of ``RelationalLLM.run`` for the question of this operator."""
        return {**self.settings.options(question), "layout": self.layout}

    @property
    def keeps_nulls(self) -> bool:
        """Whether inputs with a null get an answer."""
        return keeps_nulls(self.question, self.settings)

    def pending(self, inputs: pa.Table) -> pa.Table:
        """The inputs without an answer; columns: key, then the fields."""
        answers = self.table.answers
        return inputs.filter(pa.array([key not in answers for key in inputs[KEY].to_pylist()], pa.bool_()))

    def records(self, inputs: pa.Table) -> pa.Table:
        """The inputs as the table that the model is asked about."""
        return inputs.drop_columns([KEY]).rename_columns(list(self.question.reads))

    def ask(self, llm: Asks, store: Store, inputs: pa.Table) -> None:
        """Ask the inputs that have no answer yet, and keep the answers."""
        todo = self.pending(inputs)
        if todo.num_rows == 0:
            return
        records, keys = self.records(todo), todo[KEY].to_pylist()
        if isinstance(self.question, Retrieval):
            found = self.question.search(records.column(0).combine_chunks())
            store.add(self.table, keys, _structs(records), found, [""] * len(keys))
        else:
            self._ask_model(self.question, llm, store, records, keys)
        self.asked += todo.num_rows

    def _ask_model(self, question: Question, llm: Asks, store: Store, records: pa.Table, keys: list[str]) -> None:
        with store.checkpoint(self.table, keys, self.layout) as kept:
            answers, errors = self._run(question, llm, records, kept)
            values = [question.value(answer) for answer in answers]
            store.add(self.table, keys, _structs(records), values, [error or "" for error in errors])

    def rule_out(self, store: Store, inputs: pa.Table) -> None:
        """Answer the inputs that have no answer yet with false, without asking."""
        todo = self.pending(inputs)
        keys = todo[KEY].to_pylist()
        store.add(self.table, keys, _structs(self.records(todo)), [False] * len(keys), [BLOCKED] * len(keys))

    def _run(
        self, question: Question, llm: Asks, records: pa.Table, kept: dict[str, Any]
    ) -> tuple[Sequence[Any], Sequence[str | None]]:
        options = self.options(question)
        if question.function == "LLM_AGG":
            return reduce_groups(llm, records, question, options, self.reports)
        result = llm.run(records, question.template, **{**options, **kept})
        self.reports.append(result.report)
        return result.answers, result.errors


def keeps_nulls(question: Question | Retrieval, settings: Settings) -> bool:
    """Whether a question may be asked about nulls; nothing is near to a null."""
    return settings.keeps_nulls and isinstance(question, Question)


def _structs(records: pa.Table) -> pa.Array:
    """The rows of a table as one column."""
    columns = [column.combine_chunks() for column in records.columns]
    return pa.StructArray.from_arrays(columns, names=records.column_names)


def with_reads(question: Question, keeps: Sequence[str]) -> Question:
    """The question over the fields that it keeps."""
    return dataclasses.replace(question, fields=tuple(keeps))
