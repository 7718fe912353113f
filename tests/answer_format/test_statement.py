"""One question for a statement, wherever it is asked: what one way asked, the other finds in the result cache."""

from __future__ import annotations

import pandas as pd
import pytest
from fake_engine import FakeEngine, parts_of

from vllm_relational import RelationalLLM

pytest.importorskip("duckdb", reason="pip install 'vllm-relational[sql]'")

FRAME = pd.DataFrame({"text": ["good", "bad"]})


def test_a_frame_and_sql_ask_the_same_question(tmp_path):
    import vllm_relational.sql

    engine = FakeEngine(lambda row: "yes" if row["text"] == "good" else "no")
    with RelationalLLM(engine=engine) as llm:
        kept = FRAME.llm.using(llm).filter("{text} is praise")
        asked = {parts_of(prompt)[0].splitlines()[0] for prompt in engine.asked}
        engine.asked.clear()
        with vllm_relational.sql.connect(llm=llm) as con:
            found = con.sql("SELECT text FROM FRAME WHERE LLM_FILTER('{text} is praise', text)").df()
    assert kept["text"].tolist() == found["text"].tolist() == ["good"]
    assert {parts_of(prompt)[0].splitlines()[0] for prompt in engine.asked} == asked
