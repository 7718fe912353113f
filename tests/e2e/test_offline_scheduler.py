"""Our scheduler behind the offline class."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vllm_relational import RelationalLLM

from .conftest import ENGINE_ARGS

PROMPT = "Would a family like this home? {comments} {name} {description}"


def test_token_exact_reuse_adds_to_what_is_predicted_and_changes_no_answer(
    llm: RelationalLLM, tiny_model: Path, reviews: pd.DataFrame
) -> None:
    llm.reset_cache()
    stock = llm.run(reviews, PROMPT, max_tokens=4)

    with RelationalLLM(str(tiny_model), scheduler={"token_exact": True, "order": "arrival"}, **ENGINE_ARGS) as exact:
        found = exact.run(reviews, PROMPT, max_tokens=4)

    assert found.answers == stock.answers
    assert stock.report.measured_hit_rate == found.report.predicted.hit_rate
    assert found.report.measured_hit_rate > found.report.predicted.hit_rate + 0.01
