"""What tells the job that wrote an output from others, and what such an output still answers."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from vllm_relational.config import QueryConfig
from vllm_relational.records import NULL_CODE, AnswerFormat, EncodedTable, JobRecord, RelationalError
from vllm_relational.results.checkpoint import Checkpoint, MemoryAnswers
from vllm_relational.table import fingerprint

MIXING = np.uint64(0x9E3779B97F4A7C15)  # odd, bits spread evenly (Knuth: the golden ratio)


def job_identity(
    template: str,
    answer_format: AnswerFormat,
    model: str,
    table: EncodedTable,
    config: QueryConfig,
    merging: Mapping[str, str],
) -> dict[str, Any]:
    """What makes two jobs the same: a checkpoint serves only its own. JSON values.

    merging: the settings of deduplication, see ``RowGrouper.settings``.
    """
    return {
        "prompt": template,
        "answer form": answer_form(answer_format),
        "model": model,
        "table": fingerprint(table),
        **config.job_identity(),
        "deduplication": {"mode": config.dedup, **merging},
    }


def answer_form(answer_format: AnswerFormat) -> dict[str, Any]:
    """The answer format as JSON values."""
    given = {name: value for name, value in dataclasses.asdict(answer_format).items() if value is not None}
    return {"kind": type(answer_format).__name__, **given}


def row_digests(table: EncodedTable) -> np.ndarray:
    """Of each row's cells and the names of their columns: uint64 ``[num_rows]``. Rows with other cells differ."""
    digests = np.full(table.num_rows, len(table.names), np.uint64)
    for name, codes, values in zip(table.names, table.codes, table.values, strict=True):
        seed = xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))
        hashed = [xxhash.xxh3_64_intdigest(value.encode("utf-8", "surrogatepass"), seed) for value in values]
        of_value = np.array([*hashed, seed], np.uint64)  # the last one for null
        digests = (digests ^ of_value[np.where(codes == NULL_CODE, len(values), codes)]) * MIXING
        digests ^= digests >> np.uint64(32)
    return digests


def retire_checkpoint(path: Path, earlier: EarlierOutput | None, job: Mapping[str, Any]) -> None:
    """Delete the checkpoint of an earlier job over other rows, where its output, which is taken over, has its answers.

    Such a checkpoint is left where rows failed. job: this job; what is not known yet may be missing.
    """
    if earlier is None or not earlier.resumed or earlier.job["table"] == job["table"] or not path.exists():
        return
    with suppress(RelationalError), warnings.catch_warnings(action="ignore"):  # another job's: said by who opens it
        old = Checkpoint.open(path, earlier.job, resume=True)
        old.close(delete=earlier.holds(old.answers))


def take_over(
    earlier: EarlierOutput, record: JobRecord, rows: Sequence[int], store: Checkpoint | MemoryAnswers
) -> None:
    """Store what an earlier output answers of those rows and the store does not.

    record: of this job. Raises ``RelationalError`` where another job wrote the output.
    """
    if not earlier.check(record.job):
        return
    earlier.check_kept(record.table)
    for row, text, cut in earlier.answers(record.table, [row for row in rows if row not in store.answers]):
        store.add(row, text, cut)


@dataclass(frozen=True, eq=False)
class EarlierOutput:
    """An output that a job of this package wrote earlier.

    job:     of that job; digests: uint64 ``[num_rows]``, see ``row_digests``.
    texts:   of each row the answer, None where the row failed; cut: rows whose answers end at max_tokens.
    resumed: whether its answers are to be kept; else it is to be written anew by the same job.
    overwrite: whether another job may replace it.
    """

    path: Path
    job: Mapping[str, Any]
    digests: np.ndarray
    texts: Sequence[str | None]
    cut: frozenset[int] = frozenset()
    resumed: bool = False
    overwrite: bool = False

    def check(self, job: Mapping[str, Any]) -> bool:
        """Whether this job wrote it; raises ``RelationalError`` where another did, unless that may be replaced.

        Other rows are another job, unless it is resumed. job: what is not known yet may be missing.
        """
        now = json.loads(json.dumps(job))
        free = {"table"} if self.resumed else set()
        free |= set() if any(text is not None for text in self.texts) else {"model"}  # none was asked
        changed = [name for name in now if now[name] != self.job.get(name) and name not in free]
        if changed and not self.overwrite:
            fix = "ask only the rows that are new with --resume, " if changed == ["table"] else ""
            raise RelationalError(
                f"{self.path} was written by another job (not the same: {', '.join(changed)}): {fix}name another "
                "output, or replace it with --overwrite"
            )
        return not changed

    def check_kept(self, table: EncodedTable) -> None:
        """Raise ``RelationalError`` where a resumed job over this table would drop answers of other rows."""
        if not self.resumed or self.overwrite:
            return
        answered = np.array([text is not None for text in self.texts], bool)
        lost = int((~np.isin(self.digests[answered], row_digests(table))).sum())
        if lost:
            raise RelationalError(
                f"{self.path} answers {lost} rows that this table does not have (an input with fewer rows, or "
                "--limit): name another output, or let these answers go with --overwrite"
            )

    def is_complete(self, record: JobRecord) -> bool:
        """Whether it answers every row of that job, and no others. Rows may have moved."""
        now, rows = json.loads(json.dumps(record.job)), row_digests(record.table)
        if None in self.texts or {**self.job, "table": None} != {**now, "table": None}:
            return False
        return np.array_equal(np.unique(self.digests), np.unique(rows))

    def answers(self, table: EncodedTable, rows: Sequence[int]) -> Iterator[tuple[int, str, bool]]:
        """Of those rows the ones that it answers: row, answer, whether that was cut. Only equal cells count."""
        if not self.resumed:
            return
        known: dict[int, int] = {}
        for place, digest in enumerate(self.digests.tolist()):
            if self.texts[place] is not None:
                known.setdefault(digest, place)
        digests = row_digests(table)
        for row in rows:
            source = known.get(int(digests[row]))
            text = None if source is None else self.texts[source]
            if text is not None:
                yield row, text, source in self.cut

    def holds(self, answers: Mapping[int, str]) -> bool:
        """Whether all rows of its own job that were answered are answered in it."""
        return all(row < len(self.texts) and self.texts[row] is not None for row in answers)
