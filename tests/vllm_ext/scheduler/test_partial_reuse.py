"""Token-exact reuse in vLLM's own scheduler: what is reused is right, and is all that can be."""

from __future__ import annotations

import random
import re

import pytest
from fake_worker import (
    BLOCK_SIZE,
    Engine,
    full_attention,
    make_request,
    make_scheduler,
    sliding_window,
)
from how_many import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import RequestStatus

from vllm_relational import native
from vllm_relational.vllm_ext.scheduler import partial_support
from vllm_relational.vllm_ext.scheduler.partial_reuse import install
from vllm_relational.vllm_ext.scheduler.scheduler import RelationalScheduler

SHARED = list(range(10))  # two blocks and a half


@pytest.fixture
def engine(model_folder):
    return Engine(make_scheduler(RelationalScheduler, model_folder, 40))


def computed_after(engine, *requests):
    """Tokens computed for the last request when each runs after the one before."""
    for request in requests:
        engine.add(request)
        engine.run()
    return engine.worker.computed[requests[-1].request_id]


def test_a_request_starts_at_the_token_where_it_leaves_the_cache(engine):
    first, second = (make_request(name, SHARED + rest) for name, rest in (("a", [20, 21, 22]), ("b", [30, 31, 32])))

    assert computed_after(engine, first, second) == 3
    assert engine.scheduler.partial_reuse.counters.tokens_saved == 2
    assert engine.worker.copies == 1


def test_of_several_blocks_the_one_with_most_common_tokens_is_copied(engine):
    rows = [[0, 1, 2, 3, 9, 9, 9, 9, 5], [0, 1, 2, 3, 4, 9, 9, 9, 5], [0, 1, 2, 3, 4, 5, 6, 9, 5]]
    requests = [make_request(str(number), row) for number, row in enumerate([*rows, [0, 1, 2, 3, 4, 5, 6, 8, 8]])]

    assert computed_after(engine, *requests) == 2


def test_the_last_token_of_a_known_prompt_is_computed_and_no_more(engine):
    prompt = SHARED[: 2 * BLOCK_SIZE]

    assert computed_after(engine, make_request("a", prompt), make_request("b", prompt)) == 1


def test_a_prompt_shorter_than_a_block_is_served_too(engine):
    assert computed_after(engine, make_request("a", SHARED), make_request("b", [0, 1, 2])) == 1


def test_answers_are_sources_too(engine):
    first = make_request("a", SHARED, max_tokens=8)
    answer = engine.add(first) or engine.run()["a"]
    prompt = SHARED + answer[:5]  # 15 tokens, of which the first request computed all

    assert computed_after(engine, make_request("b", [*prompt, 99])) == 1


def test_a_block_is_no_source_in_the_step_that_computes_it(engine):
    for name, rest in (("a", [20, 21]), ("b", [30, 31])):
        engine.add(make_request(name, SHARED + rest))
    engine.run()

    # Whole blocks are shared within a step by stock vLLM, parts are not.
    assert engine.worker.computed == {"a": 12, "b": 4}
    assert engine.worker.copies == 0


def test_a_step_in_flight_is_a_source(model_folder):
    engine = Engine(make_scheduler(RelationalScheduler, model_folder, 40), in_flight=2)
    for name, rest in (("a", [20, 21]), ("b", [30, 31])):
        engine.add(make_request(name, SHARED + rest))
        engine.step()

    assert len(engine.steps) == 2, "both are to be in flight"
    assert engine.worker.computed == {"a": 12, "b": 2}
    engine.run()


@pytest.mark.parametrize(
    "one, other",
    [
        ({}, {"cache_salt": "x"}),
        ({"cache_salt": "x"}, {"cache_salt": "y"}),
        ({}, {"lora_request": LoRARequest("l", 1, "/l")}),
        ({"lora_request": LoRARequest("l", 1, "/l")}, {"lora_request": LoRARequest("m", 2, "/m")}),
    ],
)
@pytest.mark.parametrize("length", [3, 10])
def test_nothing_is_shared_across_salts_and_adapters(engine, one, other, length):
    prompt = [*SHARED[:length], 50, 51, 52]
    first, second = make_request("a", prompt, **one), make_request("b", prompt, **other)

    assert computed_after(engine, first, second) == len(prompt)
    assert computed_after(engine, make_request("c", [*prompt[:-1], 60], **other)) < len(prompt)


def test_a_request_as_large_as_the_pool_is_run_without_copies(model_folder):
    engine = Engine(make_scheduler(RelationalScheduler, model_folder, 4))
    prompts = [[*SHARED, 20, 21, 22, 23, 24, 25], [*SHARED, 30, 31, 32, 33, 34, 35]]

    # Whole blocks hit: two of four. The source would be a fifth.
    assert computed_after(engine, *(make_request(str(p[-1]), p) for p in prompts)) == 8
    assert engine.scheduler.partial_reuse.counters.declined == 1


def preempted_in_its_own_step(scheduler_cls, model_folder):
    """``low`` gets its last blocks, then ``high`` needs one in the same step: ``low`` is preempted, uncomputed."""
    limits = {"policy": "priority", "max_num_batched_tokens": 16, "long_prefill_token_threshold": 8}
    engine = Engine(make_scheduler(scheduler_cls, model_folder, 11, **limits), in_flight=0)
    engine.add(make_request("low", list(range(43)), priority=1))
    engine.step()
    engine.add(make_request("high", [50, 51, 52], max_tokens=5))
    return engine


def test_blocks_cached_in_the_step_that_preempts_their_request_are_not_found(model_folder):
    engine = preempted_in_its_own_step(RelationalScheduler, model_folder)

    assert engine.run() and engine.preemptions == 1


def test_stock_finds_them(model_folder):
    """When this fails, vLLM has mended it and ``PartialReuse._withdraw`` can go."""
    engine = preempted_in_its_own_step(AsyncScheduler, model_folder)

    with pytest.raises(AssertionError, match="low reads None at 32"):
        engine.run()


def test_a_block_evicted_before_it_became_a_source_is_none(engine):
    engine.add(make_request("a", SHARED))
    engine.step()
    manager, cached = engine.scheduler.kv_cache_manager, engine.scheduler.partial_reuse._new
    manager.evict_blocks({block.block_id for _, blocks, _ in cached for block in blocks})

    assert cached, "the test is to evict between two steps"
    assert computed_after(engine, make_request("b", SHARED)) == len(SHARED)


def test_reset_forgets_all_sources(engine):
    engine.add(make_request("a", SHARED))
    engine.run()

    assert engine.scheduler.reset_prefix_cache()

    assert computed_after(engine, make_request("b", SHARED)) == len(SHARED)


def test_a_step_makes_no_more_copies_than_memory_is_given_to(model_folder):
    class Configured(AsyncScheduler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.partial_reuse = install(self, max_copy_mebibytes=2 * full_attention().page_size_bytes / 2**20)

    engine = Engine(make_scheduler(Configured, model_folder, 40))
    engine.add(make_request("a", [*SHARED, 20, 21]))
    engine.run()
    for name in "bcd":
        engine.add(make_request(name, [*SHARED, ord(name)]))
    engine.run()

    assert [engine.worker.computed[name] for name in "bcd"] == [1, 1, 3]
    assert engine.scheduler.partial_reuse.counters.declined == 1
    assert computed_after(engine, make_request("e", [*SHARED, 50])) == 1, "the next step copies again"


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"spec": sliding_window()}, "several kinds|SlidingWindow"),
        ({"spec": [full_attention(), sliding_window()]}, "several kinds"),
        ({"spec": full_attention(page_size_padded=4096)}, "padded"),
        ({"spec": full_attention(non_causal=True)}, "later tokens"),
        ({"enable_prefix_caching": False}, "switched off"),
    ],
)
def test_other_models_keep_stock_behaviour(model_folder, settings, word):
    scheduler = make_scheduler(RelationalScheduler, model_folder, 40, **settings)

    assert scheduler.partial_reuse is None
    assert re.search(word, partial_support.unsupported(scheduler))
    assert "get_computed_blocks" not in vars(scheduler.kv_cache_manager)


def test_switched_off_is_stock(model_folder):
    scheduler = make_scheduler(RelationalScheduler, model_folder, 40, relational={"order": "arrival"})

    assert scheduler.partial_reuse is None
    assert "cache_full_blocks" not in vars(scheduler.kv_cache_manager.block_pool)


PROMPTS = st.lists(st.sampled_from([0, 0, 0, 1, 1, 2]), min_size=1, max_size=22)


def random_events(seed, priorities):
    """Additions of prompts with much in common, steps, now and then an abort, a reset, a reset that preempts."""
    draw = random.Random(seed)
    known = [[]]
    for number in range(300):
        event = draw.random()
        if event < 0.3:
            stem = draw.choice(known)
            prompt = stem[: draw.randint(0, len(stem))] + draw.choices([0, 1, 2], k=draw.randint(1, 9))
            known.append(prompt[:25])
            salt = draw.choice([None, None, None, "salt"])
            yield "add", prompt[:25], draw.randint(1, 9), salt, draw.randint(0, priorities)
        elif event < 0.97:
            yield ("step",)
        elif event < 0.985:
            yield "abort", draw.randint(max(0, number - 20), number)
        else:
            yield draw.choice([("reset",), ("preempt all",)])


def play(engine, events):
    """Run the events; answers by request, less the aborted ones."""
    aborted = set()
    for number, (kind, *details) in enumerate(events):
        if kind == "add":
            prompt, max_tokens, salt, priority = details
            engine.add(make_request(f"r{number}", prompt, max_tokens, cache_salt=salt, priority=priority))
        elif kind == "step":
            engine.step()
        elif kind == "abort":
            name = f"r{details[0]}"
            if name in engine.scheduler.requests:
                aborted.add(name)
                engine.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        elif kind == "reset":
            engine.scheduler.reset_prefix_cache()
        else:
            engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    answers = engine.run()
    return {name: answer for name, answer in answers.items() if name not in aborted}


@pytest.mark.parametrize("in_flight", [0, 1, 2])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("seed", range(6))
def test_answers_are_those_of_stock_whatever_happens(model_folder, seed, policy, in_flight):
    """Few blocks, so that blocks are evicted and requests preempted; the worker checks every position that is read."""
    num_blocks, budget = 9 + 2 * seed, 7 if seed % 2 else 64
    limits = {"policy": policy, "max_num_batched_tokens": budget, "max_num_seqs": 5}
    stock = Engine(make_scheduler(AsyncScheduler, model_folder, num_blocks, **limits), in_flight)
    ours = Engine(make_scheduler(RelationalScheduler, model_folder, num_blocks, **limits), in_flight)
    events = list(random_events(seed, priorities=2 * (policy == "priority")))

    assert play(ours, events) == play(stock, events)

    handle = ours.scheduler.partial_reuse
    assert len(handle._sources) <= len(ours.scheduler.kv_cache_manager.block_pool.blocks)
    assert handle.counters.hits > 20, "the test is to reuse"
    assert ours.preemptions > 0 or num_blocks > 12, "the test is to preempt"
    # A preempted request computes again what it lost, so single runs differ either way.
    assert sum(ours.worker.computed.values()) < 1.1 * sum(stock.worker.computed.values())


@pytest.mark.skipif(not native.AVAILABLE, reason="needs both")
@pytest.mark.parametrize("seed", range(6, 12))
def test_native_reuses_the_very_tokens_of_the_reference(model_folder, monkeypatch, seed):
    found = []
    for kind in (native._NATIVE, None):
        monkeypatch.setattr(native, "_NATIVE", kind)
        engine = Engine(make_scheduler(RelationalScheduler, model_folder, 9 + 4 * seed, max_num_seqs=5), seed % 3)
        answers = play(engine, random_events(seed, priorities=0))
        found.append((answers, engine.worker.computed, engine.scheduler.partial_reuse.counters))
    assert found[0] == found[1] and found[0][2].tokens_saved > 40


@settings(max_examples=examples(50), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(PROMPTS, max_size=12))
def test_with_room_for_all_a_request_computes_what_no_earlier_one_did(model_folder, prompts):
    """One after another: exactly the tokens after the longest prefix common with the whole blocks of any before."""
    engine = Engine(make_scheduler(RelationalScheduler, model_folder, 200))
    cached: list[list[int]] = []
    for number, prompt in enumerate(prompts):
        best = max((common(prompt, other) for other in cached), default=0)

        assert computed_after(engine, make_request(str(number), prompt)) == max(len(prompt) - best, 1)

        cached.append(prompt[: len(prompt) // BLOCK_SIZE * BLOCK_SIZE])


def common(one: list[int], other: list[int]) -> int:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length
