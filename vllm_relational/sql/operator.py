"""One LLM operator: a question over the distinct inputs that a block of SQL has for it."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Unpack

import pyarrow as pa

from vllm_relational.config import KEEP_NULLS, QUESTION_FIRST, Layout
from vllm_relational.config.arguments import QueryArguments
from vllm_relational.config.sql import SqlOptions
from vllm_relational.records import EngineDiedError, EngineInfo, JsonSchema, QueryResult, RunReport
from vllm_relational.sql.aggregate import reduce_groups
from vllm_relational.sql.answers_database import AnswersDatabase
from vllm_relational.sql.blocks import KEY
from vllm_relational.sql.functions import CallQuestion
from vllm_relational.sql.merging import ASKED, BEYOND_EXACT, CACHED, RESUMED, Merging
from vllm_relational.sql.operator_table import BLOCKED, CUT, OperatorTable, StoredAnswers
from vllm_relational.sql.retrieve import Retrieval

# Characters of an answer that a reason quotes.
LONGEST_SHOWN = 80


class LanguageModel(Protocol):
    """What is needed of ``RelationalLLM``; see there."""

    def run(self, table: Any, prompt: str, **options: Unpack[QueryArguments]) -> QueryResult:
        """Ask the prompt of every row."""

    def prepare(self, table: Any, prompt: str, **options: Unpack[QueryArguments]) -> Any:
        """Deduplicate and tokenise, ask nothing."""

    def expected_engine(self) -> EngineInfo:
        """The engine as it will most likely be."""

    def start(self) -> EngineInfo:
        """The engine, started; what it says of itself."""


class Settings(SqlOptions):
    """How SQL asks."""

    @functools.cached_property
    def merging(self) -> Merging:
        """Which inputs beyond equal ones share an answer, the result cache, the audit."""
        return Merging(**{name: getattr(self, name) for name in Merging.model_fields})

    def options(self, question: CallQuestion, records: pa.Table, embeds: bool = True) -> dict[str, Any]:
        """The options of ``RelationalLLM.run`` for a question about these records; see ``Merging.options``."""
        nulls = "keep" if self.keeps_nulls else "error"
        asked = {**question.options(), "nulls": nulls, "system_prompt": self.system_prompt, "order": self.order}
        return asked | self.merging.options(records, question.aggregates, embeds)


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
    asked, inherited, cached, resumed (from an interrupted statement): how inputs came by answers in this statement.
    """

    sql: str
    clause: str
    question: CallQuestion | Retrieval
    table: OperatorTable
    settings: Settings
    reports: list[RunReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows_in: int = 0
    distinct: int = 0
    asked: int = 0
    inherited: int = 0
    cached: int = 0
    resumed: int = 0
    places: set[int | None] = field(default_factory=set)
    layout: Layout = QUESTION_FIRST

    def options(self, question: CallQuestion, records: pa.Table, embeds: bool = True) -> dict[str, Any]:
        """The options of ``RelationalLLM.run`` for the question of this operator about these records."""
        return {**self.settings.options(question, records, embeds), "layout": self.layout}

    @property
    def keeps_nulls(self) -> bool:
        """Whether inputs with a null get an answer."""
        return keeps_nulls(self.question, self.settings)

    @property
    def merging(self) -> str:
        """The settings by which its inputs inherit answers, see ``Merging.identity``; passages are nobody else's."""
        if isinstance(self.question, Retrieval):
            return ""
        return self.settings.merging.identity(self.question.reads)

    def check(self, llm: LanguageModel) -> None:
        """Raise ``RelationalError`` for settings that a run would refuse, before anything is asked."""
        if isinstance(self.question, CallQuestion):
            nothing = pa.table({name: pa.array([None], pa.string()) for name in self.question.reads})
            llm.prepare(nothing, self.question.template, **self.options(self.question, nothing))

    def pending(self, inputs: pa.Table) -> pa.Table:
        """The inputs without an answer, or with one inherited under other settings; columns: key, then the fields."""
        is_open, merging = self.table.is_open, self.merging
        return inputs.filter(pa.array([is_open(key, merging) for key in inputs[KEY].to_pylist()], pa.bool_()))

    def records(self, inputs: pa.Table) -> pa.Table:
        """The inputs as the table that the model is asked about."""
        return inputs.drop_columns([KEY]).rename_columns(list(self.question.reads))

    def ask(self, llm: LanguageModel, database: AnswersDatabase, inputs: pa.Table, audits: bool = True) -> None:
        """Ask the inputs that have no answer yet, and keep the answers. audits: False for a sample."""
        todo = self.pending(inputs)
        if todo.num_rows == 0:
            return
        records, keys = self.records(todo), todo[KEY].to_pylist()
        if isinstance(self.question, Retrieval):
            found = self.question.search(records.column(0).combine_chunks())
            nothing, asked = [""] * len(keys), [ASKED] * len(keys)
            database.add(self.table, StoredAnswers(keys, _structs(records), found, nothing, asked, keys))
            self.asked += len(keys)
        else:
            self._ask_model(self.question, llm, database, records, keys, self._to_audit() if audits else 0)

    def _ask_model(
        self,
        question: CallQuestion,
        llm: LanguageModel,
        database: AnswersDatabase,
        records: pa.Table,
        keys: list[str],
        audit: int,
    ) -> None:
        with database.checkpoint(self.table, [*keys, self.merging] if self.merging else keys, self.layout) as kept:
            try:
                said = self._run(question, llm, records, kept.options, audit)
            except EngineDiedError as error:
                raise EngineDiedError(_how_to_go_on(error, kept.name is not None)) from error
            settled = _settled(question, keys, records, said, self.table.arrow_type)
            database.add(self.table, settled, self.merging, kept)
        self._count(said.origins)

    def _count(self, origins: Sequence[str]) -> None:
        counts = Counter(origins)
        inherited = sum(counts[step] for step in BEYOND_EXACT)
        self.inherited += inherited
        self.cached += counts[CACHED]
        self.resumed += counts[RESUMED]
        self.asked += len(origins) - inherited - counts[CACHED] - counts[RESUMED]

    def _to_audit(self) -> int:
        """The rows that the batches before have left of those to audit."""
        audited = [report.audit.samples for report in self.reports if report.audit is not None]
        return max(self.settings.merging.audit - sum(found[0].num_asked for found in audited if found), 0)

    def rule_out(self, database: AnswersDatabase, inputs: pa.Table) -> None:
        """Answer the inputs that have no answer yet with false, without asking."""
        todo = self.pending(inputs)
        keys = todo[KEY].to_pylist()
        nobody: list[str | None] = [None] * len(keys)
        no, why = [False] * len(keys), [BLOCKED] * len(keys)
        database.add(self.table, StoredAnswers(keys, _structs(self.records(todo)), no, why, nobody, nobody))

    def _run(
        self, question: CallQuestion, llm: LanguageModel, records: pa.Table, kept: dict[str, Any], audit: int
    ) -> ModelAnswers:
        options = {**self.options(question, records), "audit": audit}
        if question.aggregates:
            answers, errors, origins, statuses = reduce_groups(llm, records, question, options, self.reports)
            return ModelAnswers(answers, errors, origins, range(len(answers)), statuses)
        result = llm.run(records, question.template, **{**options, **kept})
        self.reports.append(result.report)
        errors = [_in_sql(reason) for reason in result.errors]
        return ModelAnswers(result.answers, errors, result.origins, result.source_rows.tolist(), result.statuses)


@dataclass(frozen=True)
class ModelAnswers:
    """What a run says of its records, see ``QueryResult``: one of each a record."""

    answers: Sequence[Any]
    errors: Sequence[str | None]
    origins: Sequence[str]
    source_rows: Sequence[int]
    statuses: Sequence[str]


def _settled(
    question: CallQuestion, keys: Sequence[str], records: pa.Table, said: ModelAnswers, answer_type: pa.DataType
) -> StoredAnswers:
    """What the database keeps: a source is the key of the input whose answer it is."""
    values, errors = _values(question, said, answer_type)
    sources = [keys[row] if error is None else None for row, error in zip(said.source_rows, errors, strict=True)]
    known = ("exact", *BEYOND_EXACT, CACHED)
    origins = [
        None if error is not None else origin if origin in known else ASKED  # 'resumed' was asked, by a run before
        for origin, error in zip(said.origins, errors, strict=True)
    ]
    cut = {key for key, status in zip(keys, said.statuses, strict=True) if status == CUT}
    return StoredAnswers(keys, _structs(records), values, [error or "" for error in errors], origins, sources, cut)


def _values(question: CallQuestion, said: ModelAnswers, answer_type: pa.DataType) -> tuple[list[Any], list[str | None]]:
    """Answers as SQL holds them, and errors: an answer that a schema admits and no type of SQL holds fails alone."""
    values, errors = [None] * len(said.answers), list(said.errors)
    for place, answer in enumerate(said.answers):
        try:
            value = question.value(answer)
            if isinstance(question.answer_format, JsonSchema):
                pa.array([value], answer_type)
            values[place] = value
        except (OverflowError, UnicodeEncodeError, pa.ArrowException) as error:
            errors[place] = f"unusable answer: {_shortened(repr(answer))} does not fit into SQL: {error}"
    return values, errors


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _in_sql(reason: str | None) -> str | None:
    """The reason of a row with the fix that SQL has. Nulls are not asked about, so what counts as null is a NaN."""
    if reason is None or not reason.endswith(KEEP_NULLS):
        return reason
    known = reason.removesuffix(f" is null{KEEP_NULLS}")
    return f"{known} is NaN, which counts as null: cast it to VARCHAR to ask about it, or leave it out with NOT isnan()"


def _how_to_go_on(error: EngineDiedError, kept: bool) -> str:
    """What the engine said, and what to do about it in SQL: the pipeline speaks of its own checkpoint."""
    cause = error.__cause__ if isinstance(error.__cause__, EngineDiedError) else error
    if kept:
        return f"{cause}; the answers so far are kept beside the side file: send the statement again to go on"
    return (
        f"{cause}; send the statement again: it goes on from the questions that were finished in this session. With "
        "--side FILE (side=FILE) every answer is kept"
    )


def keeps_nulls(question: CallQuestion | Retrieval, settings: Settings) -> bool:
    """Whether a question may be asked about nulls; nothing is near to a null."""
    return settings.keeps_nulls and isinstance(question, CallQuestion)


def _structs(records: pa.Table) -> pa.Array:
    """The rows of a table as one column."""
    columns = [column.combine_chunks() for column in records.columns]
    return pa.StructArray.from_arrays(columns, names=records.column_names)


def with_reads(question: CallQuestion, keeps: Sequence[str]) -> CallQuestion:
    """The question over the fields that it keeps."""
    return dataclasses.replace(question, fields=tuple(keeps))
