"""An engine that takes token ids and serves them from a real prefix cache: what it counts, forecasts must foresee."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from oracle_engine import OracleEngine

from vllm_relational.kv.simulate import PrefixCache
from vllm_relational.records import AnswerFormat, Completion, EngineInfo, Prompt


class TokenEngine(OracleEngine):
    """Answers like the oracle, by the question and the row. Tokens are bytes (``ByteTokenizer``).

    capacity: of the KV cache in tokens; None without limit. batches: the prompts of each call of ``ask``.
    """

    prompt_form: Literal["token_ids", "messages"] = "token_ids"

    def __init__(self, capacity: int | None = None, block_size: int = 16) -> None:
        super().__init__()
        self.info = EngineInfo("oracle", kv_cache_tokens=capacity, block_size=block_size)
        self.cache = PrefixCache(block_size, (capacity or 0) // block_size)
        self.batches: list[list[Prompt]] = []

    def start(self) -> EngineInfo:
        return self.info

    def ask(self, prompts: Iterable[Prompt], answer_format: AnswerFormat) -> Iterator[Completion]:
        self.batches.append([])
        yield from super().ask(prompts, answer_format)

    def _complete(self, prompt: Prompt) -> Completion:
        self.batches[-1].append(prompt)
        system, _, user = bytes(prompt.token_ids).decode().partition("\n")
        said = super()._complete(Prompt(prompt.key, system=system, user=user))
        cached = self.cache.request(prompt.token_ids)
        return Completion(
            said.key, said.text, prompt_tokens=len(prompt.token_ids), output_tokens=1, cached_tokens=cached
        )
