"""A call of a statement -> its question, its operator and the query for its inputs; refuses calls that cannot stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlglot import exp

from vllm_relational.config import QUESTION_FIRST, Layout
from vllm_relational.records import RelationalError
from vllm_relational.sql.answers_database import AnswersDatabase
from vllm_relational.sql.binding import KEPT_META, Binding
from vllm_relational.sql.blocks import Aggregates, Site, input_query, site_of
from vllm_relational.sql.functions import (
    Argument,
    CallQuestion,
    answer_format_of,
    asks_groups,
    canonical_template,
    field_names,
)
from vllm_relational.sql.normalise import ARGUMENTS_META, WRITTEN_META, expand_stars
from vllm_relational.sql.operator import Operator, Settings, keeps_nulls, with_reads
from vllm_relational.sql.parse import SQLError, error_here, is_retrieval, parts_of, sql_of
from vllm_relational.sql.passes.guards import guards_of, note_conditions
from vllm_relational.sql.planned_call import PlannedCall
from vllm_relational.sql.retrieve import FROM_META, Retrieval, check_type, retrieval_of

IN_BRACKETS = (
    "an LLM function cannot stand in a join in parentheses that has a name, or of which an outer join makes NULLs: "
    "write (SELECT ... FROM a JOIN b ON ... WHERE LLM_FILTER(...)) AS x in its place"
)
IN_PIVOT = "an LLM function cannot stand in a PIVOT: write PIVOT (SELECT ..., LLM(...) AS answer ...) ON answer"
IN_LAMBDA = "an LLM function cannot stand in a lambda: unnest the list into rows"
OUTSIDE = "an LLM function cannot stand here: use it inside of a SELECT"
CLAUSES = {"from": "ON", "where": "WHERE", "group": "GROUP BY"}


class CallReader:
    """Reads the calls of one statement.

    sql:       as written, for errors. model: what answers are filed under.
    layouts:   of operators by the name of their table; the others have the question first.
    operators: in the order in which calls were read; with the optimiser, equal questions are one operator.
    """

    def __init__(
        self,
        binding: Binding,
        aggregates: Aggregates,
        database: AnswersDatabase,
        settings: Settings,
        sql: str,
        model: str,
        layouts: Mapping[str, Layout],
    ) -> None:
        self._binding, self._aggregates, self._database, self._settings = binding, aggregates, database, settings
        self._sql, self._model, self._layouts = sql, model, layouts
        self.operators: list[Operator] = []

    def read(self, call: exp.Expr) -> PlannedCall:
        """The operator of a call and the query for its inputs, as far as the calls before are lookups."""
        assert isinstance(call, exp.Anonymous)
        site, optimize = self._site(call), self._settings.optimize
        question, columns = self._question(call, site)
        guards = guards_of(call, self._aggregates) if optimize else []
        rows = input_query(site, columns, guards, not optimize, keeps_nulls(question, self._settings))
        query, types = self._binding.bound(rows, site, keeps_rows=optimize)
        if isinstance(question, Retrieval):
            check_type(call, self._sql, types[0])
        operator = self._operator(call, site, question, types)
        if optimize:
            note_conditions(operator.notes, site, [*guards, *query.meta.get(KEPT_META, [])])
        return PlannedCall(call, operator, query, site, columns)

    def _site(self, call: exp.Anonymous) -> Site:
        """Where the call stands; raises ``SQLError`` where it cannot."""
        if call.find_ancestor(exp.Lambda):
            raise self._error(call, IN_LAMBDA)
        try:
            site = site_of(call, self._aggregates)
        except LookupError:
            raise self._error(call, OUTSIDE) from None
        join = call.find_ancestor(exp.Join, exp.Select)
        if isinstance(join, exp.Join) and join.parent is not site.block:
            raise self._error(call, IN_BRACKETS)
        if isinstance(call.find_ancestor(exp.Pivot, exp.Select), exp.Pivot):
            raise self._error(call, IN_PIVOT)
        name = call.name.upper()
        if asks_groups(name) and site.clause in CLAUSES:
            raise self._error(call, f"{name} cannot stand in {CLAUSES[site.clause]}: groups come after it; use HAVING")
        return site

    def _question(self, call: exp.Anonymous, site: Site) -> tuple[CallQuestion | Retrieval, list[exp.Expr]]:
        """What the call asks, and the columns that its prompt reads."""
        if is_retrieval(call):
            assert self._settings.retriever is not None
            retrieval, column = retrieval_of(call, self._sql, self._settings.retriever)
            return retrieval, [column]
        expand_stars(call, lambda star: self._binding.expanded(star, site.block))
        parts = parts_of(call, self._sql)
        columns, named = _distinct_arguments(parts.columns, call.meta[ARGUMENTS_META][-len(parts.columns) :])
        longest = (self._settings.max_tokens, self._settings.max_json_tokens)
        try:
            template = canonical_template(parts.function, parts.prompt, named)
            answer_format = answer_format_of(parts.function, parts.literals, *longest)
        except RelationalError as error:
            raise self._error(call, str(error)) from None
        question = CallQuestion(parts.function, template, answer_format, field_names(named))
        read = [columns[question.fields.index(field)] for field in question.reads]
        return with_reads(question, question.reads), read

    def _operator(
        self, call: exp.Expr, site: Site, question: CallQuestion | Retrieval, types: Sequence[str]
    ) -> Operator:
        """The operator of a question; without optimiser, one a call."""
        identity = self._identity(question, types)
        table = self._database.table(identity, question.function, question.template, question.sql_type())
        place = call.meta.get("start")
        known = next((operator for operator in self.operators if operator.table is table), None)
        if known is not None:
            if place not in known.places:
                known.notes.append("the statement has the question more than once: asked once")
                known.places.add(place)
            return known
        clause = "from" if FROM_META in call.meta else site.clause
        made = Operator(call.meta.get(WRITTEN_META) or sql_of(call), clause, question, table, self._settings)
        made.places.add(place)
        if question.has_layout:
            made.layout = self._settings.layout or self._layouts.get(table.name, QUESTION_FIRST)
        self.operators.append(made)
        return made

    def _identity(self, question: CallQuestion | Retrieval, types: Sequence[str]) -> str:
        """What answers are filed under: equal for calls that may share them."""
        settings, parts = self._settings, [question.identity()]
        if isinstance(question, CallQuestion):
            parts += [*types, self._model, settings.system_prompt, str(settings.keeps_nulls)]
        if not settings.optimize:
            parts.append(f"call {len(self.operators)}")
        return repr(parts)

    def _error(self, call: exp.Expr, message: str) -> SQLError:
        return error_here(self._sql, call, message)


def _distinct_arguments(
    columns: Sequence[exp.Expr], named: Sequence[Argument]
) -> tuple[list[exp.Expr], list[Argument]]:
    """An argument given twice is one field."""
    kept: dict[str, tuple[exp.Expr, Argument]] = {}
    for column, argument in zip(columns, named, strict=True):
        # Only names are the same in capitals.
        same = argument.qualified.casefold() if isinstance(column, exp.Column) else sql_of(column)
        kept.setdefault(same, (column, argument))
    return [column for column, _ in kept.values()], [argument for _, argument in kept.values()]
