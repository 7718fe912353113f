"""A schema that vLLM's grammar compiler lacks is refused once, before a row is sent; no engine is started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_relational.answer_format.check import check_answer_format
from vllm_relational.engine.vllm_engine import DEFAULTS, VllmEngine
from vllm_relational.records import Choice, EngineInfo, IntegerRange, JsonSchema, Prompt, RelationalError

BAD: list[dict[str, Any]] = [
    {"type": "array", "uniqueItems": True, "items": {"type": "integer"}},
    {"not": {"type": "string"}},
    {"type": "string", "pattern": r"\bfoo\b"},
    {"type": "integer", "minimum": 5, "maximum": 3},
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"contains": {}}}},
]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    tokenizers = pytest.importorskip("vllm.tokenizers")
    return tokenizers.get_tokenizer(str(tokenizer_folder))


@pytest.fixture
def engine(tokenizer: Any) -> VllmEngine:
    """One that has started, as far as checks go; whatever is sent raises ``AttributeError``."""
    from vllm.config import StructuredOutputsConfig

    config = SimpleNamespace(
        model_config=SimpleNamespace(is_diffusion=False, max_logprobs=20, get_vocab_size=lambda: len(tokenizer)),
        speculative_config=None,
        structured_outputs_config=StructuredOutputsConfig(**DEFAULTS["structured_outputs_config"]),
    )
    made = VllmEngine("m")
    made._llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config), get_tokenizer=lambda: tokenizer)
    made._info = EngineInfo("m")
    return made


@pytest.mark.parametrize("schema", BAD)
def test_it_is_refused_before_a_row_is_sent(engine: VllmEngine, schema: dict[str, Any]) -> None:
    def rows() -> Iterator[Prompt]:
        raise AssertionError("a row was read")
        yield Prompt(0)

    answer_format = JsonSchema(schema)
    check_answer_format(answer_format)  # our own checks pass it
    with pytest.raises(RelationalError, match=r"vLLM cannot hold answers to that: .*simplify the schema"):
        list(engine.ask(rows(), answer_format))


@pytest.mark.parametrize(
    "answer_format",
    [
        JsonSchema({"type": "object", "properties": {"a": {"type": "string", "pattern": "^a{1,3}$"}}}),
        JsonSchema({}),
        Choice(("yes", "no")),
        Choice(("yes", "yes, but")),
        IntegerRange(1, 5),
        IntegerRange(-5, 10**6),
    ],
)
def test_what_vllm_takes_is_asked(engine: VllmEngine, answer_format: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(
        "vllm_relational.engine.vllm_engine._Session", lambda *given: SimpleNamespace(run=lambda: given)
    )
    sent.extend(engine.ask([Prompt(0)], answer_format))
    assert sent[0] is engine
