"""Random tables and templates through everything that happens to a table: read, encode, prompts, write, read again.

    python scripts/robustness/fuzz_tables.py 150000 [--start 0]

A case is drawn from its number alone. Whatever the table, only ``RelationalError`` may be raised; a table that was read
is written, and Parquet and Arrow give back its cells; a JSON document gives back the values that it had. Prints the
counts by kind and the first failures; exit status 1 when there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import decimal
import io
import json
import math
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from vllm_relational.config import MergingOptions
from vllm_relational.dedup.grouper import RowGrouper
from vllm_relational.plan import PLANNERS
from vllm_relational.prompts import FourByteEstimate, PromptBuilder, parse_template
from vllm_relational.records import FreeText, PlanInput, RelationalError
from vllm_relational.table import encode_columns, nulls_as_values, read_table, write_table
from vllm_relational.table.cell_text import json_texts
from vllm_relational.table.formats import write_json_lines

SHOWN_FAILURES = 10
IN_MEMORY = Path("/dev/shm")  # each file is synchronised with its disk, which takes longer than all the rest
TEXTS = [
    "",
    "x",
    "naïve",
    "😀",
    'q"uote',
    "two\nlines",
    "a,b;c\td|e",
    "\\",
    "\u2028",
    "\x00",
    "null",
    "2020-01-01",
    "{x}",
    "007",
]
NAMES = ["a", "b", "text", "*", "", " ", "x{y}", "naïve", "a,b", 'q"', "two\nlines", "__key", "answer", "😀"]
TYPES = [
    pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.int64(), pa.float16(), pa.float32(), pa.float64(), pa.string(),
    pa.large_string(), pa.string_view(), pa.binary(), pa.binary(3), pa.binary_view(), pa.date32(), pa.date64(),
    pa.time32("s"), pa.time64("ns"), pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "UTC"),
    pa.timestamp("ms", "Europe/Berlin"), pa.duration("s"), pa.duration("ns"), pa.month_day_nano_interval(),
    pa.decimal128(20, 3), pa.decimal256(50, 2), pa.json_(), pa.uuid(),
]  # fmt: skip


class Case:
    """The random numbers of one case, and the folder for its files."""

    def __init__(self, number: int, folder: Path) -> None:
        self.random = random.Random(f"tables {number}")
        self.folder = folder

    def text(self) -> str:
        draw = self.random
        return (
            draw.choice(TEXTS)
            if draw.random() < 0.6
            else "".join(draw.choice("ab,\"' \n;é😀") for _ in range(draw.randrange(8)))
        )

    def names(self, count: int) -> list[str]:
        return self.random.sample(NAMES, min(count, len(NAMES)))


# ------------------------------------------------------------------------------------------------------ Arrow tables
def arrow_type(case: Case, level: int = 0) -> pa.DataType:
    draw = case.random
    if level == 2 or draw.random() < 0.65:
        return draw.choice(TYPES)
    inner = arrow_type(case, level + 1)
    kind = draw.randrange(5)
    if kind == 0:
        return pa.struct([(name, arrow_type(case, level + 1)) for name in case.names(draw.randrange(4))])
    if kind == 1:
        return pa.map_(pa.string(), inner)
    if kind == 2:
        return pa.large_list(inner)
    return pa.list_(inner, 2) if kind == 3 else pa.list_(inner)


def arrow_value(case: Case, kind: pa.DataType) -> Any:
    draw = case.random
    if draw.random() < 0.2:
        return None
    if pa.types.is_struct(kind):
        return {field.name: arrow_value(case, field.type) for field in kind}
    if pa.types.is_map(kind):
        return [(case.text(), arrow_value(case, kind.item_type)) for _ in range(draw.randrange(3))]
    if pa.types.is_fixed_size_list(kind):
        return [arrow_value(case, kind.value_type) for _ in range(2)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [arrow_value(case, kind.value_type) for _ in range(draw.randrange(3))]
    return scalar(case, kind)


def scalar(case: Case, kind: pa.DataType) -> Any:
    draw = case.random
    if kind == pa.json_():
        return json.dumps(json_value(case, 1), ensure_ascii=draw.random() < 0.5)
    if kind == pa.uuid() or pa.types.is_fixed_size_binary(kind):
        return bytes(draw.randrange(256) for _ in range(16 if kind == pa.uuid() else 3))
    if pa.types.is_interval(kind):
        return pa.MonthDayNano((draw.randrange(-99, 99), draw.randrange(-99, 99), draw.randrange(-(10**15), 10**15)))
    if pa.types.is_decimal(kind):
        return decimal.Decimal(draw.randrange(-(10**9), 10**9)).scaleb(-2)
    if pa.types.is_boolean(kind):
        return draw.random() < 0.5
    if pa.types.is_floating(kind):
        return np.float16(number(case)) if pa.types.is_float16(kind) else number(case)
    if pa.types.is_null(kind):
        return None
    if "binary" in str(kind):
        return case.text().encode()
    if "string" in str(kind):
        return case.text()
    return whole(case, kind)


def number(case: Case) -> float:
    return case.random.choice([0.0, -0.0, 0.1, 1e20, math.inf, math.nan, -1.5, case.random.random()])


def whole(case: Case, kind: pa.DataType) -> Any:
    """A number of the type's width, small or anywhere in its range."""
    draw = case.random
    bits = kind.bit_width
    if pa.types.is_time(kind):
        return pa.scalar(draw.randrange(86_400), pa.int32() if bits == 32 else pa.int64()).cast(kind)
    signed = not pa.types.is_unsigned_integer(kind)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if bits == 64 and (pa.types.is_date64(kind) or getattr(kind, "unit", "") == "s"):
        low, high = -(2**53), 2**53  # Parquet has neither: what lies beyond does not fit into its days and milliseconds
    value = draw.randrange(0, 100) if draw.random() < 0.7 else draw.choice([low, high, draw.randrange(low, high)])
    if pa.types.is_date64(kind):
        value = int(value / 86_400_000) * 86_400_000
    if pa.types.is_integer(kind):
        return value
    return pa.scalar(value, pa.int32() if bits == 32 else pa.int64()).cast(kind)


def arrow_table(case: Case) -> pa.Table:
    rows = case.random.choice([0, 1, 2, 5])
    columns = {}
    for name in case.names(case.random.randrange(1, 4)):
        kind = arrow_type(case)
        columns[name] = arrow_column(case, kind, rows)
    return pa.table(columns)


def arrow_column(case: Case, kind: pa.DataType, rows: int) -> pa.Array:
    values = [arrow_value(case, kind) for _ in range(rows)]
    try:
        column = pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.nulls(rows, pa.string())  # this mix of scalars has no builder
    if case.random.random() < 0.15 and (pa.types.is_string(kind) or pa.types.is_int64(kind)):
        return column.dictionary_encode()
    return column


# ----------------------------------------------------------------------------------------------------- other sources
def json_value(case: Case, level: int = 0) -> Any:
    draw = case.random
    kind = draw.randrange(9 if level < 3 else 7)
    if kind == 7:
        return [json_value(case, level + 1) for _ in range(draw.randrange(4))]
    if kind == 8:
        return {case.text(): json_value(case, level + 1) for _ in range(draw.randrange(4))}
    choices = [None, draw.random() < 0.5, draw.randrange(-5, 5), 10**30, draw.random(), case.text(), 2**53 + 1]
    return choices[kind]


def json_lines(case: Case) -> Path:
    draw = case.random
    names = case.names(3)
    rows = [{name: json_value(case) for name in names if draw.random() < 0.8} for _ in range(draw.randrange(1, 6))]
    case.rows = rows  # type: ignore[attr-defined]
    layout = draw.choice([(",", ":"), (", ", ": "), (" ,", " :")])
    text = "".join(json.dumps(row, ensure_ascii=draw.random() < 0.5, separators=layout) + "\n" for row in rows)
    return written(case, "t.jsonl", text.encode(), damaged=False)


def damaged_json(case: Case) -> Path:
    return written(case, "t.jsonl", json_lines(case).read_bytes(), damaged=True)


def csv_file(case: Case) -> Path:
    draw = case.random
    delimiter = draw.choice([",", ",", ",", ";", "\t", "|"])
    width = draw.randrange(1, 4)
    rows = [
        [case.text() for _ in range(width if draw.random() < 0.95 else width + 1)] for _ in range(draw.randrange(1, 6))
    ]
    quote = draw.random() < 0.7
    cells = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' if quote else cell for cell in row] for row in rows]
    text = draw.choice(["\n", "\r\n"]).join(delimiter.join(row) for row in cells)
    data = text.encode(draw.choice(["utf-8"] * 6 + ["utf-16", "utf-8-sig"]))
    return written(case, draw.choice(["t.csv", "t.csv", "t.tsv"]), data, damaged=draw.random() < 0.4)


def written(case: Case, name: str, data: bytes, damaged: bool) -> Path:
    draw = case.random
    if damaged and data:
        changed = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        data = bytes(changed[: draw.randrange(len(changed) + 1)] if draw.random() < 0.3 else changed)
    path = case.folder / name
    path.write_bytes(data)
    return path


def pandas_frame(case: Case) -> pd.DataFrame:
    draw = case.random
    rows = draw.choice([0, 1, 3])
    columns: dict[Any, Any] = {}
    for name in [*case.names(2), draw.choice([0, 1.5, ("a", "b"), "half \ud800"])]:
        columns[name] = pandas_column(case, rows)
    frame = pd.DataFrame(dict(enumerate(columns.values())), index=range(rows))
    frame.columns = pd.Index(list(columns), dtype=object, tupleize_cols=False)
    return frame


def pandas_column(case: Case, rows: int) -> pd.Series:
    draw = case.random
    objects = [
        None,
        math.nan,
        pd.NA,
        1,
        2.5,
        "x",
        "half \ud800",
        b"x",
        {"a": 1},
        {1: {"b": 2}},
        [1, "x"],
        (1,),
        {1},
        1j,
    ]
    objects += [
        datetime.date(2020, 1, 1),
        datetime.timedelta(1),
        decimal.Decimal("1.10"),
        np.array([1, 2]),
        10**30,
        True,
    ]
    kinds: list[Callable[[], pd.Series]] = [
        lambda: pd.Series([draw.choice(objects) for _ in range(rows)], dtype=object),
        lambda: pd.Series([json_value(case) for _ in range(rows)], dtype=object),
        lambda: pd.Series([draw.randrange(3) for _ in range(rows)], dtype=draw.choice(["Int8", "float32", "int16"])),
        lambda: pd.Series([case.text() for _ in range(rows)], dtype=draw.choice(["str", "category"])),
        lambda: pd.Series(pd.to_timedelta([draw.randrange(-(10**9), 10**9) for _ in range(rows)], unit="s")),
        lambda: pd.Series(
            pd.to_datetime([draw.randrange(10**9) for _ in range(rows)], unit="s", utc=draw.random() < 0.5)
        ),
        lambda: pd.Series(pd.arrays.SparseArray([draw.choice([0.0, math.nan]) for _ in range(rows)])),
        lambda: pd.Series(pd.cut([draw.randrange(10) for _ in range(rows)], [-1, 5, 10])),
        lambda: pd.Series(pd.PeriodIndex(["2020-01"] * rows, freq="M")),
        lambda: pd.Series([complex(1, 2)] * rows, dtype=complex),
    ]
    return draw.choice(kinds)()


# -------------------------------------------------------------------------------------------------------- what is done
def template_for(case: Case, names: list[str]) -> str:
    draw = case.random
    parts = ["{*}", "{{", "}}", "{", "}", " text ", *(f"{{{name}}}" for name in names), "{no such column}"]
    return "".join(draw.choice(parts) for _ in range(draw.randrange(1, 5)))


def check_prompts(case: Case, table: pa.Table, template: str) -> None:
    """Every prompt is one text, and each of its lines is JSON that gives the cell back."""
    question = parse_template(template, table.column_names)
    encoded = encode_columns(table, question.columns)
    encoded = nulls_as_values(encoded) if case.random.random() < 0.7 else encoded
    complete = (encoded.codes >= 0).all(axis=0)
    grouping, _ = RowGrouper(encoded, MergingOptions()).group(complete)
    first = grouping.distinct.first_rows
    codes = np.ascontiguousarray(encoded.codes[:, first])
    builder = PromptBuilder(question, encoded, FreeText(), "", FourByteEstimate())
    batch = PlanInput(codes, tuple(cells.lengths for cells in builder.segments.cells))
    plan = PLANNERS[case.random.choice(["original", "fixed"])](batch)
    for prompt in builder.message_prompts(plan, codes, first):
        prompt.user.encode()
    for values in encoded.values:
        for value in values:
            assert "\n" not in value and "\r" not in value, value
            json.loads(value, parse_float=str)


def check_back(case: Case, table: pa.Table) -> None:
    """The table in a format and back: equal cells in typed formats, any table or a clear error in the others."""
    suffix = case.random.choice([".parquet", ".arrow", ".jsonl", ".csv"])
    path = case.folder / f"o{suffix}"
    write_table(table, path)
    if suffix in (".jsonl", ".csv") or not table.num_columns:
        try_reading(path)
        return
    back = read_table(path)
    assert back.column_names == table.column_names
    for before, after in zip(table.columns, back.columns, strict=True):
        if before.type == after.type:
            assert before.equals(after) or json_texts(before) == json_texts(after)
        else:
            found = [json.loads(text) if text else text for text in json_texts(after)]
            wanted = [json.loads(text) if text else text for text in json_texts(before)]
            assert found == wanted, (found, wanted)


def try_reading(path: Path) -> None:
    with contextlib.suppress(RelationalError):  # a table of one empty text, for one, is a blank line of CSV
        read_table(path)


def check_json(case: Case, table: pa.Table) -> None:
    """What JSON lines held is what they hold when they are written again."""
    out = io.BytesIO()
    write_json_lines(table, out)
    back = [json.loads(line) for line in out.getvalue().split(b"\n")[:-1]]
    names = list(dict.fromkeys(name for row in case.rows for name in row))  # type: ignore[attr-defined]
    wanted = [{name: row.get(name) for name in names} for row in case.rows] if names else []  # type: ignore[attr-defined]
    assert json.dumps(back) == json.dumps(wanted) or back == wanted, (back, wanted)


SOURCES = {
    "arrow": arrow_table,
    "pandas": pandas_frame,
    "json": json_lines,
    "damaged json": damaged_json,
    "csv": csv_file,
}


def run(number: int, folder: Path) -> str:
    """Run one case; what became of it. Raises for a failure."""
    case = Case(number, folder)
    kind = list(SOURCES)[number % len(SOURCES)]
    source = SOURCES[kind](case)
    try:
        table = read_table(source)
    except RelationalError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, error
        assert kind not in ("json", "arrow"), error
        return f"{kind}: refused when read"
    if kind == "json":
        check_json(case, table)
    check_back(case, table)
    try:
        check_prompts(case, table, template_for(case, table.column_names))
    except RelationalError as error:
        return f"{kind}: refused when asked" if "column" in str(error) or "prompt" in str(error) else f"{kind}: {error}"
    return f"{kind}: read, asked and written"


def fuzz(count: int, start: int = 0) -> tuple[Counter[str], list[tuple[int, str]]]:
    """Run so many cases; the outcomes, and number and traceback of those that failed."""
    outcomes: Counter[str] = Counter()
    failures = []
    with (
        tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for number in range(start, start + count):
            try:
                outcomes[run(number, Path(folder))] += 1
            except Exception:  # whatever is no RelationalError is what is looked for
                failures.append((number, traceback.format_exc()))
    return outcomes, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=150_000)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    given = parser.parse_args()
    begin = time.perf_counter()
    outcomes, failures = fuzz(given.count, given.start)
    for outcome, times in sorted(outcomes.items()):
        print(f"{times:>9,}  {outcome}")
    for number, text in failures[:SHOWN_FAILURES]:
        print(f"case {number} failed:\n{text}")
    print(
        f"{given.count:,} cases from {given.start:,} in {time.perf_counter() - begin:.0f} s: {len(failures):,} failed"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
