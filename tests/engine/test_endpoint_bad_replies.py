"""One bad row fails alone, with its reason, whatever its reply is: all kinds in one job, over real sockets."""

from __future__ import annotations

import re
from typing import Any

import pytest
from bad_replies import ANSWERED, KINDS, SECRET
from fake_server import FakeServer, Reply, chat

from vllm_relational.engine.endpoint import EndpointEngine
from vllm_relational.records import Choice, Completion, Prompt

YES_NO = Choice(("yes", "no"))
NAMES = sorted(KINDS)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Completion]:
    """Each kind for one row, a good row after each."""
    server = FakeServer()
    server.reply = _by_row
    engine = EndpointEngine(
        server.root + "/v1", api_key=SECRET, concurrency=16, timeout_s=2.5, max_retries=1, retry_delay_s=0.001
    )
    prompts = [Prompt(key, user=f"row {key}") for key in range(2 * len(NAMES))]
    try:
        answers = {answer.key: answer for answer in engine.ask(prompts, YES_NO)}
    finally:
        server.kill()
    assert len(answers) == len(prompts)
    assert {answers[key].text for key in range(1, len(prompts), 2)} == {"yes"}
    return {name: answers[2 * place] for place, name in enumerate(NAMES)}


def _by_row(body: dict[str, Any]) -> Reply:
    found = re.fullmatch(r"row (\d+)", body["messages"][-1]["content"])
    place, is_good = divmod(int(found[1]) if found else 1, 2)
    return chat("yes") if is_good else KINDS[NAMES[place]][0]


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_reply_is_the_end_of_its_row_only(outcomes: dict[str, Completion], name: str) -> None:
    completion, expected = outcomes[name], KINDS[name][1]
    if expected == ANSWERED:
        assert (completion.text, completion.error) == ("yes", None)
        return
    error = completion.error or ""
    assert completion.text is None and re.search(expected, error), error
    assert len(error) < 400 and error.isprintable() and SECRET[:8] not in error
    counts = (completion.prompt_tokens, completion.output_tokens, completion.cached_tokens or 0)
    assert all(type(count) is int and 0 <= count < 10**9 for count in counts)
