"""vLLM in this process: the default engine."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vllm_relational.answer_format.thoughts import thought_opening
from vllm_relational.context.vllm_report import loaded_of
from vllm_relational.engine.base import PromptForm
from vllm_relational.engine.decoding import DecodingPlan, plan_decision
from vllm_relational.engine.interrupts import starting_engine
from vllm_relational.engine.release import stop_when_dropped, wait_for_stopped
from vllm_relational.engine.starting import (
    CPU_BLOCK_SIZE,
    cpu_defaults,
    first_line,
    import_vllm,
    is_cpu_build,
    prepare_contexts,
    prepare_environment,
    refuse_second_run_of_script,
    start_message,
    without_unreadable_script,
)
from vllm_relational.records import AnswerFormat, Completion, EngineDiedError, EngineInfo, Prompt, RelationalError

# Requests waiting inside vLLM beyond those it runs: enough that its scheduler never starves between two feeds.
QUEUE_FACTOR = 2
THOUGHT_TOKENS = 12  # the mark that opens a thought, and the line breaks behind it, at the end of a prompt
KEEPING_TIME_S = 300.0
SIMPLIFY = "simplify the schema (--schema, schema=) or the choices, or ask for text and read it yourself"
DEFAULTS = {
    "enable_prefix_caching": True,
    # Compact JSON: a model left free to indent spends a fifth of its tokens on white space, or all of them.
    "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
}


class VllmEngine:
    """An in-process ``vllm.LLM``, started at the first question.

    scheduler:   settings of our scheduler, as ``{"token_exact": True}`` (``vllm_ext/settings.py``); None: vLLM's own.
    attention:   ``dipr`` for our sparse attention, with settings ``dipr`` (``sparse/settings.py``); None: vLLM's own.
    contexts:    a folder that keeps what was computed of prompts, of at most ``contexts_size`` GiB; on a GPU it passes
                 through ``contexts_memory`` GiB of CPU memory (``context/vllm_arguments.py``). None: nothing is kept.
    engine_args: any argument of ``vllm.LLM``. On a CPU the defaults suit a CPU: no compilation, a 4 GiB KV cache,
    and bfloat16 only where the processor multiplies it in hardware.
    """

    prompt_form: PromptForm = "token_ids"

    def __init__(
        self,
        model: str,
        quiet: bool = True,
        scheduler: Mapping[str, Any] | None = None,
        attention: str | None = None,
        dipr: Mapping[str, Any] | None = None,
        contexts: Path | None = None,
        contexts_size: float | None = None,
        contexts_memory: float | None = None,
        **engine_args: Any,
    ) -> None:
        from vllm_relational.context.vllm_arguments import context_arguments
        from vllm_relational.vllm_ext.settings import attention_arguments, engine_arguments

        self.model = model
        self._one_query = threading.Lock()
        self._one_start = threading.Lock()
        self._quiet = quiet
        self._args = {**engine_args, **attention_arguments(attention, dipr, engine_args)}
        self._args |= engine_arguments(scheduler, self._args) if scheduler is not None else {}
        self._contexts = contexts
        if contexts is not None:
            self._args |= context_arguments(contexts, is_cpu_build(), contexts_size, contexts_memory, self._args)
        self._llm: Any = None
        self._info: EngineInfo | None = None
        self._dead = False
        self._stop_when_dropped: Any = None

    def start(self) -> EngineInfo:
        with self._one_start:
            return self._info or self._start()

    def _start(self) -> EngineInfo:
        refuse_second_run_of_script()
        wait_for_stopped()
        self._prepare_environment()
        vllm = import_vllm()
        from vllm_relational.vllm_ext.process.facts import engine_info, is_cpu
        from vllm_relational.vllm_ext.process.live_engine import shutdown
        from vllm_relational.vllm_ext.process.liveness import watch_engine
        from vllm_relational.vllm_ext.process.orphans import owning_children
        from vllm_relational.vllm_ext.settings import read_settings

        if self._contexts is not None:
            prepare_contexts(self.model, self._contexts)
        defaults = cpu_defaults(self._args) if is_cpu() else {}
        arguments = {**DEFAULTS, **defaults, **self._args}
        read_settings(arguments.get("additional_config"))  # vLLM would hide the reason in its engine process
        try:
            with starting_engine(), owning_children(), without_unreadable_script():
                self._llm = vllm.LLM(self.model, **arguments)
        except KeyboardInterrupt:
            self.close()
            raise
        except Exception as error:  # vLLM raises ValueError, RuntimeError, OSError, pydantic errors and its own
            raise RelationalError(start_message(self.model, error)) from error
        self._stop_when_dropped = stop_when_dropped(self, functools.partial(shutdown, self._llm, self._patience))
        watch_engine(self._llm)
        self._info = engine_info(self._llm, self.model)
        return self._info

    def expected(self) -> EngineInfo:
        """What ``start`` said or, as far as is known without starting, will say: for plans that are not run."""
        if self._info is not None:
            return self._info
        from vllm_relational.vllm_ext.process.facts import scheduler_facts
        from vllm_relational.vllm_ext.settings import expected_block_size

        on_gpu = expected_block_size(self._args) or EngineInfo.block_size
        block_size = self._args.get("block_size") or (CPU_BLOCK_SIZE if is_cpu_build() else on_gpu)
        positions = self._args.get("max_model_len")
        return EngineInfo(
            model=self.model,
            max_model_len=positions if isinstance(positions, int) and positions > 0 else _positions(self.model),
            block_size=block_size,
            **scheduler_facts(self._args.get("scheduler_cls"), self._args.get("additional_config")),
        )

    def ask(self, prompts: Iterable[Prompt], answer_format: AnswerFormat) -> Iterator[Completion]:
        # vLLM's client belongs to one thread at a time, and a step hands out the answers of every query.
        with self._one_query:
            self.start()
            if self._dead:
                raise EngineDiedError("the engine died earlier: close() it, the next question then starts a new one")
            plan = plan_decision(answer_format, self._llm.get_tokenizer())
            self._check_constraint(plan)
            yield from _Session(self, plan, iter(prompts)).run()

    def _check_constraint(self, plan: DecodingPlan) -> None:
        """Refuse, before any row is sent, what vLLM would refuse for each: a schema that its grammar compiler lacks."""
        from vllm.exceptions import VLLMClientError

        from vllm_relational.vllm_ext.process.live_engine import check_parameters

        if plan.free:
            return
        try:
            check_parameters(self._llm, plan.params)
        except (VLLMClientError, ValueError, TypeError) as error:
            raise RelationalError(f"vLLM cannot hold answers to that: {first_line(error)}; {SIMPLIFY}") from error

    def reset_cache(self) -> bool:
        from vllm_relational.vllm_ext.process.live_engine import dead_engine_error

        if self._llm is None:
            return True
        try:
            return bool(self._llm.reset_prefix_cache())
        except dead_engine_error() as error:
            self._dead = True
            raise EngineDiedError("the vLLM engine process died") from error

    def close(self) -> None:
        """Stop the engine process and free its memory. The engine may be started again."""
        from vllm_relational.vllm_ext.process.live_engine import shutdown

        if self._stop_when_dropped is not None:
            self._stop_when_dropped.detach()
        if self._llm is not None:
            shutdown(self._llm, self._patience)
        self._llm = self._info = None
        self._stop_when_dropped = None
        self._dead = False

    @property
    def _patience(self) -> float | None:
        """Seconds that the engine has to stop: to keep contexts, what is on its way to the disk has to get there."""
        return None if self._contexts is None else KEEPING_TIME_S

    def _prepare_environment(self) -> None:
        prepare_environment(self._quiet)
        if self._quiet:
            self._args.setdefault("use_tqdm_on_load", False)


class _Session:
    """One call of ``ask``: keeps vLLM's queue filled and hands out completions as requests finish."""

    def __init__(self, engine: VllmEngine, plan: DecodingPlan, prompts: Iterator[Prompt]) -> None:
        from vllm_relational.vllm_ext.process.facts import max_num_seqs

        self._engine = engine
        self._llm = engine._llm
        self._plan = plan
        self._prompts = prompts
        self._in_flight: dict[str, tuple[Prompt, str]] = {}
        self._ends: dict[tuple[int, ...], str] = {}
        self._limit = (1 + QUEUE_FACTOR) * max_num_seqs(self._llm)

    def run(self) -> Iterator[Completion]:
        from vllm_relational.vllm_ext.process.live_engine import dead_engine_error

        try:
            while True:
                yield from self._feed()
                if not self._in_flight:
                    return
                yield from self._step()
        except dead_engine_error() as error:
            self._engine._dead = True
            raise EngineDiedError(
                "the vLLM engine process died (killed, or out of memory: give it less with VLLM_CPU_KVCACHE_SPACE or "
                "gpu_memory_utilization)"
            ) from error
        finally:
            self._abort()

    def _feed(self) -> Iterator[Completion]:
        while len(self._in_flight) < self._limit:
            prompt = next(self._prompts, None)
            if prompt is None:
                return
            refusal = self._send(prompt)
            if refusal is not None:
                yield refusal

    def _send(self, prompt: Prompt) -> Completion | None:
        from vllm.exceptions import VLLMClientError

        from vllm_relational.vllm_ext.process.live_engine import external_id

        try:
            (internal,) = self._llm.enqueue([{"prompt_token_ids": prompt.token_ids}], self._plan.params, use_tqdm=False)
        except (VLLMClientError, ValueError, TypeError) as error:
            return Completion(prompt.key, None, error=first_line(error), prompt_tokens=len(prompt.token_ids))
        self._in_flight[external_id(internal)] = (prompt, internal)
        return None

    def _step(self) -> Iterator[Completion]:
        from vllm_relational.vllm_ext.process.live_engine import step

        for output in step(self._llm):
            if output.finished and output.request_id in self._in_flight:
                prompt, _ = self._in_flight.pop(output.request_id)
                yield self._completion(prompt, output)

    def _completion(self, prompt: Prompt, output: Any) -> Completion:
        answer = output.outputs[0]
        said, loaded = self._plan.read(answer), loaded_of(output.kv_transfer_params)
        return Completion(
            key=prompt.key,
            text=self._opening(prompt) + said.text if said.text else said.text,
            error=said.error,
            cut=said.cut,
            prompt_tokens=len(prompt.token_ids),
            output_tokens=len(answer.token_ids),
            cached_tokens=max(0, (output.num_cached_tokens or 0) - loaded.lost),
            loaded_tokens=loaded.tokens,
        )

    def _opening(self, prompt: Prompt) -> str:
        """Where the chat template left the reply inside a thought, its mark: a text that never ends it is no answer."""
        if not self._plan.free:
            return ""
        end = tuple(prompt.token_ids[-THOUGHT_TOKENS:])  # the same for all rows, unless the row stands there
        if end not in self._ends:
            self._ends = {end: thought_opening(self._llm.get_tokenizer().decode([int(token) for token in end]))}
        return self._ends[end]

    def _abort(self) -> None:
        from vllm_relational.vllm_ext.process.live_engine import abort

        if self._in_flight and not self._engine._dead:
            abort(self._llm, [internal for _, internal in self._in_flight.values()])
        self._in_flight.clear()


def _positions(model: str) -> int | None:
    """The context length that a model folder states; None for hub names."""
    try:
        positions = json.loads(Path(model, "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    return positions if isinstance(positions, int) else None
