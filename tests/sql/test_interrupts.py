"""Ctrl-C while DuckDB computes."""

from __future__ import annotations

import os
import signal
import threading

import pytest

FOREVER = "SELECT sum(a.i * b.i) AS x FROM range(1000000) a(i), range(10000000) b(i)"


@pytest.fixture(autouse=True)
def ctrl_c():
    """Python's handler, also where the suite runs in the background; nobody else's file for wake-ups."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
    assert signal.set_wakeup_fd(-1) == -1


def interrupted(run, query: str) -> None:
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run(query)
    timer.join()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "query",
    [
        FOREVER,
        f"CREATE TABLE t AS {FOREVER}",
        f"SELECT LLM('{{x}}', x) FROM ({FOREVER})",
        f"SELECT LLM('{{id}}', id), (SELECT x FROM ({FOREVER})) FROM product",
    ],
)
def test_a_query_ends_and_the_session_goes_on(con, engine, query):
    def run(query: str) -> None:
        result = con.sql(query)
        if result is not None:
            result.arrow()

    interrupted(run, query)
    assert con.sql("SELECT count(LLM('{id}', id)) FROM product").fetchall() == [(8,)]
    assert len(engine.asked) == 8  # what the interrupted statement had asked is kept


def test_errors_are_what_they_are(con):
    with pytest.raises(Exception, match="INTERRUPT"):
        con.sql("SELECT error('no INTERRUPT')").fetchall()
    with pytest.raises(Exception, match="nowhere"):
        con.sql("FROM nowhere")


def test_another_thread_may_run_statements(con):
    found = []
    thread = threading.Thread(target=lambda: found.extend(con.sql("SELECT count(*) FROM review").fetchall()))
    thread.start()
    thread.join()
    assert found == [(40,)]
