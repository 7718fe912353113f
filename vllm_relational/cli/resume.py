"""The output of ``run``: who wrote it, and whether it is complete.

Parquet and Arrow files keep the identity of their job in the metadata of their schema, with a digest of the answers.
Beside CSV and JSON lines it stands in OUTPUT.job.json, with a digest of the whole output and one of each row. An output
that was edited or damaged since, or that comes from elsewhere, does not pass for the job's.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from vllm_relational.cli import output as cli_output
from vllm_relational.cli.files import holds_something
from vllm_relational.files.atomic import followed, write_whole
from vllm_relational.query.job_record import EarlierOutput, row_digests
from vllm_relational.records import JobRecord, QueryResult, RelationalError
from vllm_relational.results.checkpoint import Checkpoint
from vllm_relational.results.outcome import CUT
from vllm_relational.terminal import tell

if TYPE_CHECKING:
    import pyarrow as pa

    from vllm_relational.llm import RelationalLLM

KEY = b"vllm_relational.job"  # in the metadata of a schema
FORMAT = 1
BLOCK_BYTES = 1 << 20


def sidecar(output: Path) -> Path:
    """Where the record of an output stands that has no place for it: beside the file, not beside a link to it."""
    place = followed(output)
    return place.with_name(f"{place.name}.job.json")


class _SameError(Exception):
    """What was to be written is there already, to the byte."""


def write(
    answered: pa.Table,
    output: Path | None,
    record: JobRecord | None,
    answer: str,
    status: str | None = None,
    keep_same: bool = False,
) -> bool:
    """The answered table with the record of its job, or without one as JSON lines on standard output.

    answer, status: the columns of the answers and of what became of each row.
    keep_same: an output that holds the same already is not touched. Returns whether something was written.
    """
    before = _digest(output) if keep_same and output is not None else ""

    def compare(partial: Path) -> None:
        if before and _digest(partial) == before:
            raise _SameError

    try:
        _write(answered, output, record, answer, status, compare)
    except _SameError:
        return False
    return True


def _write(
    answered: pa.Table,
    output: Path | None,
    record: JobRecord | None,
    answer: str,
    status: str | None,
    compare: Callable[[Path], None],
) -> None:
    from vllm_relational.table.write import keeps_metadata, write_table

    if output is None or record is None:
        cli_output.write(answered, output)
        return
    facts = {"format": FORMAT, "job": record.job, "used": record.table.names, "answer": answer, "status": status}
    metadata = {name: text for name, text in (answered.schema.metadata or {}).items() if name != KEY}
    if keeps_metadata(output):
        facts["answers"] = _answers_digest(*_texts_and_cut(answered, answer, status))
        write_table(answered.replace_schema_metadata({**metadata, KEY: json.dumps(facts).encode()}), output, compare)
        return
    facts["columns"] = answered.column_names  # JSON lines without rows have no place for them
    facts["digests"] = base64.b64encode(row_digests(record.table).astype("<u8").tobytes()).decode()

    def describe(partial: Path) -> None:
        """A kill before the output takes its place leaves the one that was there, and what was said of it."""
        compare(partial)
        before = [known for known in _known(output) if known["output"] == _digest(output)]
        _say_of(output, [{**facts, "output": _digest(partial)}, *before])

    write_table(answered.replace_schema_metadata(metadata), output, describe)
    _say_of(output, _known(output)[:1])


def earlier_output(output: Path | None, resume: bool, overwrite: bool) -> EarlierOutput | None:
    """What is there under the output's name; None where it is nothing, or is to be replaced whatever it is.

    Raises ``RelationalError`` for a file that no job wrote, or that was changed since.
    """
    if output is None or (overwrite and not resume):
        return None
    if not holds_something(output):
        if not overwrite and holds_something(sidecar(output)) and not _known(output):
            raise RelationalError(f"{sidecar(output)} is no record of an output: move it away, or name another output")
        return None
    found = _read(output, resume, overwrite)
    if found is None and not overwrite:
        raise RelationalError(
            f"{output} exists, and no job wrote it as it is now: name another output, or replace it with --overwrite"
        )
    return found


def is_complete(
    earlier: EarlierOutput, llm: RelationalLLM, model: str | None, data: pa.Table, prompt: str, options: dict[str, Any]
) -> bool:
    """Whether a resumed job has nothing left to ask. Starts no engine; a model that was not named is taken for its own.

    Found out only where the output has as many rows, all answered: it costs a look at the whole table. What the output
    should hold beside the answers (columns, a report) may have changed: it is written without asking.
    """
    if not earlier.resumed or len(earlier.texts) != data.num_rows or None in earlier.texts:
        return False
    return earlier.is_complete(llm.prepare(data, prompt, **options).record(model or str(earlier.job.get("model"))))


def drop_checkpoint(checkpoint: Path | None, earlier: EarlierOutput) -> None:
    """Delete the checkpoint of a complete output: its job was killed before it did so."""
    if checkpoint is not None and checkpoint.exists():
        with suppress(RelationalError):  # another job's
            Checkpoint.open(checkpoint, earlier.job, resume=True).close(delete=True)


def complete_message(output: Path | None, same: bool) -> str:
    """What to say of a resumed output that answers every row. same: it holds already what this run would write."""
    if same:
        return f"nothing to resume: {output} is complete; to ask again, run without --resume"
    return f"nothing to ask: {output} answers every row; it was written anew as this run wants it, with those answers"


def settle_checkpoint(checkpoint: Path | None, output: Path | None, result: QueryResult) -> None:
    """Delete the checkpoint once the output holds everything; keep it while rows failed, for ``--resume``."""
    if checkpoint is None or not checkpoint.exists():
        return
    if result.num_failed:
        tell(f"answers are kept in {checkpoint}: run again with --resume to ask the failed rows once more")
    elif output is None:
        tell(f"answers are kept in {checkpoint}")
    else:
        checkpoint.unlink(missing_ok=True)


def say_interrupted(checkpoint: Path | None) -> None:
    """After Ctrl-C: where the answers are."""
    if checkpoint is None:
        tell("interrupted: nothing was kept; with -o or --checkpoint a run can be resumed")
    elif not checkpoint.exists():
        tell("interrupted before the first answer")
    else:
        with checkpoint.open("rb") as lines:
            answers = sum(1 for _ in lines) - 1
        tell(f"interrupted: {max(answers, 0)} answers are in {checkpoint}; continue with --resume")


def stamp(output: Path | None) -> tuple[int, int, int] | None:
    """Changes when the file is written; None where there is none."""
    try:
        facts = output.stat() if output is not None else None
    except OSError:
        return None
    return None if facts is None else (facts.st_ino, facts.st_size, facts.st_mtime_ns)


@dataclass(frozen=True)
class OutputPlace:
    """Where a run writes, and what was there when it began.

    output: None for standard output. checkpoint: where answers are kept until the output is written.
    stamp: of the output as it was; see ``stamp``.
    """

    output: Path | None
    checkpoint: Path | None
    overwrite: bool
    earlier: EarlierOutput | None
    stamp: tuple[int, int, int] | None

    @classmethod
    def find(cls, output: Path | None, checkpoint: Path | None, resume: bool, overwrite: bool) -> OutputPlace:
        """Raises ``RelationalError`` for an output that may be neither continued nor replaced."""
        return cls(output, checkpoint, overwrite, earlier_output(output, resume, overwrite), stamp(output))

    def check_unchanged(self, answers_kept: bool) -> None:
        """Raise ``RelationalError`` where somebody else wrote the output since, unless it may be replaced.

        answers_kept: whether this run's answers are in the checkpoint.
        """
        if self.overwrite or stamp(self.output) == self.stamp:
            return
        kept = f"the answers are in {self.checkpoint}; take another output with --resume --checkpoint {self.checkpoint}"
        raise RelationalError(
            f"{self.output} was written by another process since this one began: it is left as it is"
            f"{f'; {kept}' if answers_kept and self.checkpoint is not None else ', run again'}"
        )


def _read(output: Path, resume: bool, overwrite: bool) -> EarlierOutput | None:
    from vllm_relational.table import encode_columns, nulls_as_values, read_table
    from vllm_relational.table.write import keeps_metadata

    try:
        if keeps_metadata(output):
            table = read_table(output)
            facts = json.loads((table.schema.metadata or {})[KEY])
            digests = row_digests(nulls_as_values(encode_columns(table, facts["used"])))
        else:
            there = _digest(output)
            facts = next(known for known in _known(output) if known["output"] == there)
            digests = np.frombuffer(base64.b64decode(facts["digests"]), "<u8").astype(np.uint64)
            table = read_table(output)
        texts, cut = _texts_and_cut(table, facts["answer"], facts["status"])
        if facts["format"] != FORMAT or len(digests) != len(texts):
            return None
        if keeps_metadata(output) and facts["answers"] != _answers_digest(texts, cut):
            return None
        return EarlierOutput(output, dict(facts["job"]), digests, texts, cut, resume, overwrite)
    except (RelationalError, OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


def _texts_and_cut(table: pa.Table, answer: str, status: str | None) -> tuple[list[str | None], frozenset[int]]:
    """The answers of an output as texts, and the rows whose answers end at max_tokens."""
    texts = [None if value is None else str(value) for value in table[answer].to_pylist()]
    values: Sequence[Any] = table[status].to_pylist() if status is not None else ()
    return texts, frozenset(row for row, value in enumerate(values) if value == CUT)


def _answers_digest(texts: list[str | None], cut: frozenset[int]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps([texts, sorted(cut)]).encode())


def _known(output: Path) -> list[dict[str, Any]]:
    """What the sidecar says: of the output, and while that is replaced, of the one before."""
    try:
        found = json.loads(sidecar(output).read_bytes())["outputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return (
        [known for known in found if isinstance(known, dict) and "output" in known] if isinstance(found, list) else []
    )


def _say_of(output: Path, outputs: list[dict[str, Any]]) -> None:
    text = json.dumps({"outputs": outputs}, ensure_ascii=False)
    write_whole(sidecar(output), text.encode("utf-8", "replace"), private=True)


def _digest(file: Path) -> str:
    """Of the content: 128 bits; '' where there is no file."""
    digest = xxhash.xxh3_128()
    try:
        with file.open("rb") as opened:
            while block := opened.read(BLOCK_BYTES):
                digest.update(block)
    except FileNotFoundError:
        return ""
    return digest.hexdigest()
