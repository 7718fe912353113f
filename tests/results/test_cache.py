"""Answers outlive a run, are found only under the same conditions, and a bad file is refused and left alone."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_relational.records import Prompt, RelationalError
from vllm_relational.results.cache import KEYS_A_QUERY, AnswerCache, QueryCache, answer_key

SETTINGS = {"model": "m", "fingerprint": "", "answer form": {"kind": "FreeText", "max_tokens": 64}}
prompts = st.builds(
    Prompt,
    key=st.just(0),
    token_ids=st.lists(st.integers(0, 2**40), max_size=3),
    system=st.text(max_size=3),
    user=st.text(max_size=3),
)


def texts(cache: AnswerCache, keys) -> dict[bytes, str]:
    return {key: answer.text for key, answer in cache.find(keys).items()}


@given(prompts, prompts)
def test_other_prompts_have_other_keys(one, other):
    same = (list(one.token_ids), one.system, one.user) == (list(other.token_ids), other.system, other.user)
    assert (answer_key(SETTINGS, one) == answer_key(SETTINGS, other)) == same


@pytest.mark.parametrize("change", [{"model": "n"}, {"fingerprint": "x"}, {"answer form": {"kind": "FreeText"}}])
def test_other_conditions_have_other_keys(change):
    prompt = Prompt(0, [1, 2])
    assert answer_key(SETTINGS, prompt) != answer_key(SETTINGS | change, prompt)


def test_answers_are_there_when_the_file_is_opened_again(tmp_path):
    answers = {bytes([number % 256, number // 256]) * 16: f"é{number}\x00'" for number in range(3 * KEYS_A_QUERY)}
    cache = AnswerCache(tmp_path / "c.db")
    for key, text in answers.items():
        cache.add(key, text, "m")
    cache.close()
    again = AnswerCache(tmp_path / "c.db")
    assert texts(again, [*answers, b"unknown"]) == answers
    again.close()


def test_a_query_finds_what_another_stored_and_asks_again_what_is_unusable(tmp_path):
    asked = [Prompt(key, [key]) for key in range(4)]
    cache = AnswerCache(tmp_path / "c.db")
    first = QueryCache(cache, SETTINGS, "m")
    assert first.find(asked, lambda text: True) == {}
    first.add(1, "yes")
    first.add(2, "perhaps")
    second = QueryCache(cache, SETTINGS, "m")
    assert second.find(asked, lambda text: text == "yes") == {1: "yes"}
    second.add(2, "no")
    second.add(1, "other")  # was found: nothing to store
    assert QueryCache(cache, SETTINGS, "m").find(asked, lambda text: True) == {1: "yes", 2: "no"}
    assert QueryCache(cache, SETTINGS | {"model": "n"}, "n").find(asked, lambda text: True) == {}
    cache.close()


def test_an_answer_that_was_cut_short_stays_marked(tmp_path):
    asked = [Prompt(key, [key]) for key in range(3)]
    cache = AnswerCache(tmp_path / "c.db")
    first = QueryCache(cache, SETTINGS, "m")
    first.find(asked, lambda text: True)
    first.add(0, "half of", cut=True)
    first.add(1, "whole")
    cache.close()
    cache = AnswerCache(tmp_path / "c.db")
    second = QueryCache(cache, SETTINGS, "m")
    assert second.find(asked, lambda text: True) == {0: "half of", 1: "whole"} and second.cut == {0}
    second.find(asked[1:], lambda text: True)
    assert second.cut == set()
    cache.close()


def test_sizes_and_clearing(tmp_path):
    cache = AnswerCache(tmp_path / "c.db")
    for number, model in enumerate(["a", "a", "b"]):
        cache.add(bytes([number]), "four", model)
    assert cache.sizes() == [("a", 2, 8), ("b", 1, 4)]
    assert cache.clear("a") == 2
    assert cache.sizes() == [("b", 1, 4)]
    assert cache.clear() == 1 and cache.sizes() == []
    cache.close()


# ------------------------------------------------------------------------------------------------------- bad files
def other_database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE answers (key, answer)")


def other_version(path: Path) -> None:
    AnswerCache(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")


def damaged(path: Path) -> None:
    cache = AnswerCache(path)
    for number in range(2000):
        cache.add(number.to_bytes(32, "little"), "x" * 50, "m")
    cache.close()
    whole = bytearray(path.read_bytes())
    start, end = 46 * 4096, 56 * 4096  # leaves of the tree
    whole[start:end] = b"\xff" * (end - start)
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text("not a database " * 100), "file is not a database; name another file with"),
        (other_database, "not a result cache of this version"),
        (other_version, "not a result cache of this version"),
        (lambda path: path.mkdir(), "name another file"),
    ],
    ids=["text", "other database", "other version", "folder"],
)
def test_a_bad_file_is_refused_and_left_alone(tmp_path, make, reason):
    path = tmp_path / "c.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(RelationalError, match=rf"c\.db.*{reason}"):
        AnswerCache(path)
    assert before is None or path.read_bytes() == before


KEYS = [number.to_bytes(32, "little") for number in range(2000)]


def set_aside(folder: Path) -> list[Path]:
    return list(folder.glob("*.damaged"))


@pytest.mark.parametrize("linked", [False, True])
def test_a_damaged_page_loses_only_its_own_answers_and_the_file_goes_on(tmp_path, linked):
    path, name = tmp_path / "c.db", tmp_path / "name.db"
    damaged(path)
    before = path.read_bytes()
    name.symlink_to(path)
    cache = AnswerCache(name if linked else path)
    with pytest.warns(UserWarning, match=r"is damaged: 1,\d\d\d answers that are whole were taken over") as told:
        found = texts(cache, KEYS)
    assert set(found.values()) == {"x" * 50} and 1500 < len(found) < 2000 and len(told) == 1
    (aside,) = set_aside(tmp_path)
    assert aside.read_bytes()[100:] == before[100:] and str(aside) in str(told[0].message)
    for key in set(KEYS) - found.keys():
        cache.add(key, "x" * 50, "m")
    cache.close()
    assert name.is_symlink() and path.stat().st_mode & 0o777 == 0o600
    again = AnswerCache(path)
    assert len(texts(again, KEYS)) == 2000 and set_aside(tmp_path) == [aside]
    again.close()


def test_a_page_that_is_damaged_where_nothing_was_looked_for_is_mended_when_an_answer_is_added(tmp_path):
    path = tmp_path / "c.db"
    damaged(path)
    cache = AnswerCache(path)
    lost = [key for key in KEYS if not readable(cache, key)]
    with pytest.warns(UserWarning, match="is damaged: 1,"):
        cache.add(lost[0], "new", "m")
    cache.add(b"more", "new", "m")
    assert texts(cache, [lost[0], lost[1], b"more", KEYS[0]]) == {lost[0]: "new", b"more": "new", KEYS[0]: "x" * 50}
    cache.close()


def readable(cache: AnswerCache, key: bytes) -> bool:
    try:
        return bool(cache._database.execute("SELECT 1 FROM answers WHERE key = ?", [key]).fetchall())
    except sqlite3.DatabaseError:
        return False


def flip_key(path: Path, key: bytes) -> None:
    whole = bytearray(path.read_bytes())
    assert whole.count(key) == 1
    whole[whole.index(key)] ^= 0x80
    path.write_bytes(whole)


def test_a_flipped_key_is_found_out_and_hides_no_others(tmp_path):
    path = tmp_path / "c.db"
    keys = [number.to_bytes(2, "big") * 16 for number in range(200)]
    cache = AnswerCache(path)
    for key in keys:
        cache.add(key, "yes", "m")
    cache.close()
    flip_key(path, keys[100])
    cache = AnswerCache(path)
    with pytest.warns(UserWarning, match=r"c\.db is damaged: 199 answers that are whole"):
        found = texts(cache, keys)
    assert found == {key: "yes" for key in keys if key != keys[100]}
    assert len(set_aside(tmp_path)) == 1
    cache.close()


def test_a_file_with_far_more_entries_than_are_missing_is_not_looked_through(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr("vllm_relational.results.cache.ENTRIES_A_MISS", 5)
    monkeypatch.setattr("vllm_relational.results.cache.FEW_ENTRIES", 9)
    path = tmp_path / "c.db"
    keys = [number.to_bytes(2, "big") * 16 for number in range(11)]
    cache = AnswerCache(path)
    for key in keys[:10]:
        cache.add(key, "yes", "m")
    cache.close()
    flip_key(path, keys[9])
    cache = AnswerCache(path)
    assert texts(cache, [keys[0], keys[10]]) == {keys[0]: "yes"} and not recwarn
    with pytest.warns(UserWarning, match="9 answers that are whole"):
        texts(cache, [keys[9], keys[10]])
    cache.close()


def test_a_damaged_file_that_another_has_open_stays_as_it_is_and_says_the_fix(tmp_path):
    path = tmp_path / "c.db"
    damaged(path)
    other, cache = AnswerCache(path), AnswerCache(path)
    other.find([KEYS[0]])
    before = path.read_bytes()
    with pytest.warns(UserWarning, match="end other runs that use it and run again, or name another file") as told:
        found = texts(cache, KEYS)
    assert 1500 < len(found) < 2000 and cache.damaged > 200 and len(told) == 1
    cache.add(b"new", "y", "m")  # nothing is written into a file that is known to be damaged
    cache.close()
    other.close()
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["c.db"]


def test_a_file_that_is_exchanged_while_it_is_opened_is_opened_again(tmp_path, monkeypatch):
    path, other = tmp_path / "c.db", tmp_path / "other.db"
    for each, text in ((path, "old"), (other, "new")):
        made = AnswerCache(each)
        made.add(b"1", text, "m")
        made.close()
    prepare = AnswerCache._prepare

    def exchanged(self) -> None:
        prepare(self)
        if other.exists():
            other.replace(path)

    monkeypatch.setattr(AnswerCache, "_prepare", exchanged)
    cache = AnswerCache(path)
    assert texts(cache, [b"1"]) == {b"1": "new"}
    cache.close()


def test_an_empty_file_that_was_there_becomes_its_owners_only(tmp_path):
    path = tmp_path / "c.db"
    path.touch(0o644)
    AnswerCache(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_head_that_is_damaged_is_refused_with_the_fix(tmp_path):
    path = tmp_path / "c.db"
    damaged(path)
    whole = bytearray(path.read_bytes())
    whole[100:4096] = b"\xff" * 3996
    path.write_bytes(whole)
    with pytest.raises(RelationalError, match=r"damaged at its beginning.*: move it away, or name another"):
        AnswerCache(path)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER evil AFTER INSERT ON answers BEGIN UPDATE answers SET answer = 'no'; END",
        "CREATE VIEW more AS SELECT 1",
        "DROP TABLE answers; CREATE VIEW answers AS SELECT x'31' AS key, 'yes' AS answer",
    ],
)
def test_a_cache_with_more_than_answers_in_it_is_refused(tmp_path, statement):
    path = tmp_path / "c.db"
    AnswerCache(path).close()
    with sqlite3.connect(path) as database:
        database.executescript(statement)
    database.close()
    with pytest.raises(RelationalError, match="not a result cache of this version"):
        AnswerCache(path)


def test_answers_of_the_first_format_are_kept(tmp_path):
    path = tmp_path / "c.db"
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TABLE answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL, model TEXT NOT NULL, created REAL NOT "
            "NULL) WITHOUT ROWID"
        )
        database.execute("INSERT INTO answers VALUES (x'31', 'yes', 'm', 1.5), (x'32', 'é', 'n', 2.5)")
        database.execute(f"PRAGMA application_id = {0x764C5252}")
        database.execute("PRAGMA user_version = 1")
    database.close()
    for _ in range(2):
        cache = AnswerCache(path)
        assert texts(cache, [b"1", b"2"]) == {b"1": "yes", b"2": "é"} and cache.damaged == 0
        assert cache.sizes() == [("m", 1, 3), ("n", 1, 1)]
        cache.close()


def test_a_cache_and_its_log_are_for_their_owner_only(tmp_path):
    cache = AnswerCache(tmp_path / "c.db")
    cache.add(b"1", "yes", "m")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert len(list(tmp_path.iterdir())) == 3
    cache.close()


def test_the_log_stays_small_while_another_has_the_file_open(tmp_path):
    path, log = tmp_path / "c.db", tmp_path / "c.db-wal"
    other, cache = AnswerCache(path), AnswerCache(path)
    other.find([b"1"])
    most = 0
    for number in range(3000):
        cache.add(number.to_bytes(32, "big"), "x" * 4000, "m")
        most = max(most, log.stat().st_size if number % 100 == 0 else 0)
    assert 1_000_000 < most < 5_000_000 < path.stat().st_size
    cache.close()
    assert log.stat().st_size == 0
    other.close()


@pytest.mark.timeout(20)
def test_a_named_pipe_is_no_cache(tmp_path):
    os.mkfifo(tmp_path / "c.db")
    with pytest.raises(RelationalError, match=r"no regular file: name another file"):
        AnswerCache(tmp_path / "c.db")


def test_a_query_says_how_many_answers_were_damaged(tmp_path):
    asked = [Prompt(key, [key]) for key in range(3)]
    cache = AnswerCache(tmp_path / "c.db")
    first = QueryCache(cache, SETTINGS, "m")
    first.find(asked, lambda text: True)
    for row in range(3):
        first.add(row, f"answer {row}")
    cache._database.execute("UPDATE answers SET answer = 'answer 2' WHERE answer = 'answer 1'")
    second = QueryCache(cache, SETTINGS, "m")
    with pytest.warns(UserWarning, match=r"c\.db: 1 damaged answers were left out"):
        assert second.find(asked, lambda text: True) == {0: "answer 0", 2: "answer 2"}
    second.add(1, "answer 1")
    assert len(QueryCache(cache, SETTINGS, "m").find(asked, lambda text: True)) == 3
    cache.close()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RelationalError, match="check the folder"):
        AnswerCache(tmp_path / "none" / "c.db")


def test_a_cache_that_cannot_be_written_warns_once_and_the_run_goes_on(tmp_path, recwarn):
    cache = AnswerCache(tmp_path / "c.db")
    cache._database.execute("PRAGMA query_only = ON")
    cache.add(b"1", "x", "m")
    cache.add(b"2", "y", "m")
    assert len(recwarn) == 1 and "the run goes on without" in str(recwarn[0].message)
    cache.close()


# ----------------------------------------------------------------------------------------------------- processes
WRITER = """
import sys
from pathlib import Path
from vllm_relational.results.cache import AnswerCache
cache = AnswerCache(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    cache.add(number.to_bytes(32, "little"), f"answer {number}", "m")
    if number % 100 == 0:
        print(number, flush=True)
cache.close()
"""


def writer(path: Path, first: int, end: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(first), str(end)], stdout=subprocess.PIPE)


def test_a_killed_writer_leaves_a_file_with_all_it_had_stored(tmp_path):
    path = tmp_path / "c.db"
    process = writer(path, 0, 10**9)
    for line in process.stdout:
        if int(line) >= 300:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    cache = AnswerCache(path)
    stored = texts(cache, (number.to_bytes(32, "little") for number in range(301)))
    assert sorted(stored.values()) == sorted(f"answer {number}" for number in range(301))
    cache.add(b"more", "x", "m")
    assert texts(cache, [b"more"]) == {b"more": "x"}
    cache.close()


def test_two_processes_make_and_write_one_file(tmp_path):
    path = tmp_path / "c.db"
    processes = [writer(path, 0, 500), writer(path, 500, 1000), writer(path, 250, 750)]
    assert [process.communicate()[1] or process.returncode for process in processes] == [0, 0, 0]
    cache = AnswerCache(path)
    assert cache.sizes() == [("m", 1000, sum(len(f"answer {number}") for number in range(1000)))]
    cache.close()


class LockedAtFirst(sqlite3.Connection):
    """What SQLite does where two connections change a new file to the log at once: it refuses one, without waiting."""

    refusals = 2

    def execute(self, sql, *parameters):
        if "journal_mode" in sql and self.refusals:
            self.refusals -= 1
            raise sqlite3.OperationalError("database is locked")
        return super().execute(sql, *parameters)


def test_two_that_open_a_new_file_at_once_wait_for_each_other(tmp_path, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=LockedAtFirst, **options))
    cache = AnswerCache(tmp_path / "c.db")
    cache.add(b"1", "yes", "m")
    assert texts(cache, [b"1"]) == {b"1": "yes"}
    cache.close()


@pytest.mark.parametrize("answer", [b"yes", b"\xff", "yes\ud800".encode("utf-8", "surrogatepass")], ids=ascii)
@pytest.mark.parametrize("kind", ["BLOB", "TEXT"])
def test_what_is_no_valid_text_in_the_file_is_no_answer(tmp_path, answer, kind):
    path = tmp_path / "c.db"
    cache = AnswerCache(path)
    cache.add(b"1", "yes", "m")
    cache.add(b"2", "no", "m")
    with sqlite3.connect(path) as poison:
        poison.execute(f"UPDATE answers SET answer = CAST(? AS {kind}) WHERE key = ?", (answer, b"1"))
    poison.close()
    readable = {b"1": "yes"} if answer == b"yes" else {}
    assert texts(cache, [b"1", b"2"]) == {b"2": "no"} | readable
    cache.close()


DAMAGES = [
    "UPDATE answers SET answer = 'no' WHERE key = X'31'",
    "UPDATE answers SET answer = NULL WHERE key = X'31'",
    "UPDATE answers SET cut = 1 WHERE key = X'31'",
    "UPDATE answers SET checksum = zeroblob(8) WHERE key = X'31'",
    "UPDATE answers SET answer = (SELECT answer FROM answers WHERE key = X'32'), "
    "checksum = (SELECT checksum FROM answers WHERE key = X'32') WHERE key = X'31'",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_counted_and_never_served(tmp_path, damage):
    path = tmp_path / "c.db"
    cache = AnswerCache(path)
    cache.add(b"1", "yes", "m")
    cache.add(b"2", "perhaps", "m")
    with sqlite3.connect(path) as poison:
        poison.execute("PRAGMA writable_schema = ON")
        poison.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
    poison.close()
    with sqlite3.connect(path) as poison:
        poison.execute(damage)
    poison.close()
    assert texts(cache, [b"1", b"2"]) == {b"2": "perhaps"} and cache.damaged == 1
    cache.add(b"1", "yes", "m")
    assert texts(cache, [b"1"]) == {b"1": "yes"}
    cache.close()
