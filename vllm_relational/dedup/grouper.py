"""Which rows are asked: the steps of deduplication that a query wants, one on top of the other.

exact -> normalised -> semantic; each step joins whole groups of the step before, so a row equal to another in all that
the prompt reads always shares its group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vllm_relational import dedup
from vllm_relational.config import MergingOptions
from vllm_relational.embed import Embedder, embed_texts, load_embedder, reads_whole, release
from vllm_relational.records import DedupReport, Distinct, EncodedTable, Grouping, MergeExample, Origin, RelationalError

EXACT, NORMALIZED, SEMANTIC = Origin.EXACT, Origin.NORMALIZED, Origin.SEMANTIC
# Merged rows that the report shows, for each step beyond the exact one.
EXAMPLES = 3
SHOWN_CHARACTERS = 120


class RowGrouper:
    """The deduplication of one table; making it checks the settings against the table and does no work.

    opens: makes an embedder of the name in the settings; by default a local model.
    Raises ``RelationalError`` for unknown rules, columns that the prompt does not use, missing libraries.
    """

    def __init__(
        self,
        table: EncodedTable,
        config: MergingOptions,
        opens: Callable[[str], Embedder] = load_embedder,
    ) -> None:
        self._table, self._config = table, config
        self._rules = _rules(table, config)
        self._columns = _similar_columns(table, config)
        self._embedder = _embedder(config, opens)
        self._too_long = 0

    @property
    def settings(self) -> dict[str, str]:
        """What decides which rows are joined, in words: jobs with the same ask the same rows."""
        found: dict[str, str] = {}
        if self._rules:
            found["normal forms"] = _rules_in_words(self._rules, self._table.names)
        if self._embedder is not None:
            equal = ", ".join(name for name in self._table.names if name not in self._columns)
            found["compared by meaning"] = ", ".join(self._columns) + (f"; equal: {equal}" if equal else "")
            found["least similarity"] = f"{self._config.similarity:g}"
            found["embedder"] = embedder_name(self._config.embedder)
        return found

    def group(self, asked: np.ndarray) -> tuple[Grouping, DedupReport]:
        """Group the rows where ``asked`` (bool ``[num_rows]``) is True."""
        exact = dedup.distinct_rows(self._table.codes, asked)
        levels: dict[str, np.ndarray] = {EXACT: exact.inverse}
        distinct, codes = exact, self._table.codes
        similarity = np.empty(0, np.float32)
        if self._rules:
            codes = dedup.normal_codes(self._table, self._rules)
            distinct = self._normalized(exact, codes, asked)
            levels[NORMALIZED] = distinct.inverse
        if self._embedder is not None:
            before = distinct
            distinct, similarity = self._semantic(distinct, codes, self._embedder)
            levels[SEMANTIC] = distinct.inverse
            similarity = np.append(similarity, np.float32(0))[before.inverse]  # rows not asked have group -1
        grouping = Grouping(distinct, levels)
        examples = tuple(self._examples(grouping, similarity))
        merged = merged_rows(grouping)
        return grouping, DedupReport(self._config.dedup, self.settings, merged, self._too_long, examples)

    def _normalized(self, exact: Distinct, codes: np.ndarray, asked: np.ndarray) -> Distinct:
        normal = dedup.distinct_rows(codes, asked)
        return dedup.regrouped(exact, normal.inverse[exact.first_rows], dedup.most_frequent(exact, normal))

    def _semantic(self, distinct: Distinct, codes: np.ndarray, embedder: Embedder) -> tuple[Distinct, np.ndarray]:
        """The groups joined by meaning, and for each group before the similarity to the row asked for it."""
        rows = distinct.first_rows
        texts = dedup.row_texts(self._table, rows, self._columns)
        vectors, whole = _embedded(embedder, texts)
        if embedder is not self._config.embedder:
            release(embedder)  # loaded for this table only: the engine needs the memory
        self._too_long = int((~whole).sum())
        keys = self._keys(codes, rows, whole)
        heads = dedup.similar_rows(
            vectors, self._config.similarity, dedup.row_counts(distinct), keys, self._config.seed
        )
        kept, group = np.unique(heads, return_inverse=True)
        similarity = np.einsum("ij,ij->i", vectors, vectors[heads]) if len(rows) else np.empty(0, np.float32)
        return dedup.regrouped(distinct, group.reshape(-1), rows[kept]), similarity

    def _keys(self, codes: np.ndarray, rows: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """Equal where two rows may be joined: equal in the columns not compared, both read to their end.

        In columns that are compared a null is like nothing but a null: an embedder reads it as the word.
        """
        others = [place for place, name in enumerate(self._table.names) if name not in self._columns]
        compared = [place for place in range(len(codes)) if place not in others]
        nulls = [self._is_null(place)[self._table.codes[place, rows]] for place in compared]
        keys = dedup.distinct_rows(np.concatenate([codes[others][:, rows], np.array(nulls, codes.dtype)])).inverse
        alone = np.flatnonzero(~whole)
        keys[alone] = -1 - alone
        return keys

    def _is_null(self, column: int) -> np.ndarray:
        """Of each value of the column; bool ``[num_values]``."""
        return np.array([value == "null" for value in self._table.values[column]], bool)

    def _examples(self, grouping: Grouping, similarity: np.ndarray) -> Iterator[MergeExample]:
        origin, source = dedup.origins(grouping), dedup.source_rows(grouping.distinct)
        exact = grouping.levels[EXACT]
        for place, name in list(enumerate(grouping.levels))[1:]:
            rows = np.flatnonzero(origin == place)
            rows = rows[np.sort(np.unique(exact[rows], return_index=True)[1])]  # equal rows are one example
            if name == SEMANTIC:
                rows = rows[np.argsort(similarity[rows], kind="stable")][:EXAMPLES]
            else:
                rows = rows[np.linspace(0, len(rows) - 1, num=min(EXAMPLES, len(rows)), dtype=np.int64)]
            for row in rows.tolist():
                close = float(similarity[row]) if name == SEMANTIC else None
                yield self._example(row, int(source[row]), name, close)

    def _example(self, row: int, source: int, origin: str, similarity: float | None) -> MergeExample:
        codes = self._table.codes
        differ = [place for place in range(len(codes)) if codes[place, row] != codes[place, source]]
        asked, merged = (
            {self._table.names[place]: _short(self._table.values[place][codes[place, at]]) for place in differ}
            for at in (source, row)
        )
        return MergeExample(row, source, origin, similarity, asked, merged)


def merged_rows(grouping: Grouping) -> dict[str, int]:
    """Rows that inherit an answer, by the step that joined them to the row asked."""
    origin = dedup.origins(grouping)
    return {name: int((origin == place).sum()) for place, name in enumerate(grouping.levels)}


def rows_of(grouping: Grouping, report: DedupReport, rows: np.ndarray) -> tuple[Grouping, DedupReport]:
    """The same groups over some rows of the table only, int64 ascending; examples that show other rows are left out."""
    cut = dedup.part_of(grouping, rows)
    place = {row: number for number, row in enumerate(rows.tolist())}
    examples = tuple(
        dataclasses.replace(example, row=place[example.row], source_row=place[example.source_row])
        for example in report.examples
        if example.row in place and example.source_row in place
    )
    return cut, dataclasses.replace(report, merged=merged_rows(cut), examples=examples)


def answer_origins(grouping: Grouping, known: Mapping[int, str], failed: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Of each row the row asked and how it came by its answer, see ``QueryResult``.

    known: by row, how its answer came where it was not asked in this run; a checkpoint may know rows that are merged
    now, and they inherit. failed: bool ``[num_rows]``.
    """
    source, origin = dedup.source_rows(grouping.distinct), dedup.origins(grouping)
    steps = [*grouping.levels, Origin.ASKED]  # -1 is the last
    words = np.array(steps, dtype=object)[origin]
    asked = set(grouping.distinct.first_rows.tolist())
    for row, word in known.items():
        if row in asked:
            words[row] = word
    failed = failed | (source < 0)
    words[failed] = Origin.FAILED
    return np.where(failed, -1, source), [str(word) for word in words]


def name_sources(errors: list[str | None], grouping: Grouping) -> None:
    """Say in the reasons of merged rows, in place, which other row was asked for them."""
    source, exact = dedup.source_rows(grouping.distinct), grouping.levels[EXACT]
    other = (source >= 0) & (exact != exact[source])
    for row in np.flatnonzero(other).tolist():
        if errors[row] is not None:
            errors[row] = f"{errors[row]} (row {source[row]} was asked for this one)"


def _rules(table: EncodedTable, config: MergingOptions) -> dict[str, tuple[str, ...]]:
    """By column, its rules; columns without any are left out."""
    if config.dedup == EXACT or (config.dedup == SEMANTIC and not config.normalize):
        return {}
    rules = dedup.column_rules(table.names, config.normalize)
    for name in rules:
        dedup.normalizer(rules[name])  # raises before anything is paid for
    return {name: chosen for name, chosen in rules.items() if chosen}


def _similar_columns(table: EncodedTable, config: MergingOptions) -> tuple[str, ...]:
    if config.dedup != SEMANTIC:
        return ()
    unused = [name for name in config.similar_columns if name not in table.names]
    if unused:
        raise RelationalError(
            f"similar names the column {unused[0]!r}, which the prompt does not use: only what the prompt reads counts "
            f"({', '.join(table.names)})"
        )
    columns = tuple(dict.fromkeys(config.similar_columns)) or dedup.text_columns(table)
    if not columns:
        raise RelationalError(
            "no column that the prompt reads holds text to compare by meaning: use --dedup normalized"
        )
    return columns


def _embedder(config: MergingOptions, opens: Callable[[str], Embedder]) -> Embedder | None:
    if config.dedup != SEMANTIC:
        return None
    return opens(config.embedder) if isinstance(config.embedder, str) else config.embedder


def embedder_name(embedder: Any) -> str:
    """What tells an embedder from others: its name, or that of the function."""
    if isinstance(embedder, str):
        return embedder
    return str(getattr(embedder, "name", None) or getattr(embedder, "__qualname__", type(embedder).__qualname__))


def _embedded(embedder: Embedder, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors and whether each text was read to its end; equal texts are embedded once."""
    numbers: dict[str, int] = {}
    places = np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
    distinct = list(numbers)
    vectors, whole = embed_texts(embedder, distinct), reads_whole(embedder, distinct)
    if len(distinct) == len(texts):
        return vectors, whole
    return vectors[places], whole[places]


def _rules_in_words(rules: Mapping[str, tuple[str, ...]], names: tuple[str, ...]) -> str:
    sets = set(rules.values())
    if len(sets) == 1 and len(rules) == len(names):
        return f"all columns: {', '.join(sets.pop())}"
    return "; ".join(f"{name}: {', '.join(chosen)}" for name, chosen in rules.items())


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
