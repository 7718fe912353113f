"""Our connector under two schedulers: what a request attends to is its own prefix, wherever it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_worker import BLOCK_SIZE, Engine, make_request, make_scheduler
from page_worker import PageWorker, SharedPrefixes, files, tokens
from vllm.config import KVTransferConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

from vllm_relational.context.vllm_arguments import context_arguments
from vllm_relational.context.vllm_connector import ContextConnector
from vllm_relational.context.vllm_report import loaded_of
from vllm_relational.records import RelationalError
from vllm_relational.vllm_ext.scheduler import RelationalScheduler

pytestmark = pytest.mark.slow  # vLLM's scheduler, most of it twice

EXACT = {"order": "arrival", "token_exact": True}
PLAIN = {"order": "arrival"}


class ContextEngine(Engine):
    """An engine with both sides of the connector."""

    def __init__(self, folder: Path, model: Path, num_blocks: int = 60, in_flight: int = 1, **settings: Any) -> None:
        config = context_arguments(folder, True)["kv_transfer_config"]
        config["kv_connector_extra_config"]["weights"] = settings.pop("weights", "w")
        cls = settings.pop("cls", RelationalScheduler)
        transfer = KVTransferConfig(**config)
        super().__init__(make_scheduler(cls, model, num_blocks, transfer=transfer, **settings), in_flight)
        self.worker = PageWorker(num_blocks)
        self.side = ContextConnector(
            self.scheduler.vllm_config, self.scheduler.connector.role, self.scheduler.kv_cache_config
        )
        pages = self.worker.store.bytes.view(torch.float32).view(num_blocks + 1, 1, BLOCK_SIZE, -1)
        self.side.register_kv_caches({"layer.0": pages})
        self.loaded: dict[str, int] = {}
        self.lost: dict[str, int] = {}

    def step(self) -> None:
        step = self.scheduler.schedule()
        self.preemptions += len(step.preempted_req_ids or ())
        self.side.bind_connector_metadata(step.kv_connector_metadata)
        answer = self.worker.execute(step) if step.total_num_scheduled_tokens else ModelRunnerOutput([], {})
        self.side.start_load_kv(None)
        self.side.wait_for_save()
        _, done = self.side.get_finished(set())
        failed = self.side.get_block_ids_with_load_errors()
        answer.kv_connector_output = KVConnectorOutput(finished_recving=done, invalid_block_ids=failed)
        self.steps.append((step, answer))
        while len(self.steps) > (self.in_flight if step.total_num_scheduled_tokens else 0):
            self._take_in()

    def _take_in(self) -> None:
        outputs = self.scheduler.update_from_output(*self.steps.popleft())
        for answers in outputs.values():
            for answer in answers.outputs:
                self.answers.setdefault(answer.request_id, []).extend(answer.new_token_ids)
                if answer.finish_reason is not None:
                    said = loaded_of(answer.kv_transfer_params)
                    self.loaded[answer.request_id], self.lost[answer.request_id] = said

    @property
    def computed(self) -> dict[str, int]:
        return self.worker.computed


def asked(engine: ContextEngine, rows: list[list[int]], max_tokens: int = 1) -> ContextEngine:
    for place, row in enumerate(rows):
        engine.add(make_request(f"r{place}", row, max_tokens))
    engine.run()
    return engine


@pytest.fixture
def make(tmp_path, model_folder):
    return lambda **settings: ContextEngine(tmp_path, model_folder, **settings)


@pytest.mark.parametrize("cls", [AsyncScheduler, RelationalScheduler])
@pytest.mark.parametrize("in_flight", [0, 1, 2])
@pytest.mark.parametrize("length", [3, 4, 5, 15, 16, 17, 40])
def test_a_second_engine_computes_the_rest(make, cls, in_flight, length):
    row = tokens(1, length)
    one = asked(make(cls=cls, in_flight=in_flight, relational=PLAIN), [row])
    two = asked(make(cls=cls, in_flight=in_flight, relational=PLAIN), [row])
    whole = length // BLOCK_SIZE * BLOCK_SIZE
    assert two.answers == one.answers and one.loaded == {"r0": 0} and two.loaded == {"r0": whole}
    assert two.computed["r0"] == max(length - whole, 1)  # the last token in any case


def test_long_prompts_are_stored_as_they_are_computed(make, tmp_path):
    row = tokens(2, 50)
    asked(make(max_num_batched_tokens=16), [row])
    assert len(files(tmp_path)) == 12
    assert asked(make(max_num_batched_tokens=16), [row]).loaded == {"r0": 48}


def test_what_this_process_has_is_not_loaded(make):
    row = tokens(3, 40)
    asked(make(), [row[:20]])
    engine = asked(make(max_num_seqs=1), [row[:20], row])
    assert engine.loaded == {"r0": 20, "r1": 0}
    assert asked(make(), [row]).loaded == {"r0": 40}


def test_what_one_request_loads_others_find(make):
    rows = [[*tokens(7, 30), place] for place in range(6)]
    asked(make(), rows[:1])
    engine = asked(make(), rows)
    assert sum(engine.loaded.values()) == 28 and len(engine.computed) == 6
    assert sum(engine.computed.values()) == 6 * 3


def test_salts_keep_rows_apart(make):
    row = tokens(4, 20)
    one = make()
    one.add(make_request("r0", row, cache_salt="a"))
    one.run()
    for salt, loaded in (("b", 0), ("a", 20)):
        two = make()
        two.add(make_request("r0", row, cache_salt=salt))
        two.run()
        assert two.loaded == {"r0": loaded}


def test_other_weights_share_nothing(make):
    row = tokens(5, 20)
    asked(make(), [row])
    assert asked(make(weights="v"), [row]).loaded == {"r0": 0}


@pytest.mark.parametrize("in_flight", [0, 1, 2])
@pytest.mark.parametrize("bad", [0, 2, 4])
def test_from_a_bad_block_on_all_is_computed_and_stored_again(make, tmp_path, in_flight, bad):
    row = tokens(6, 20)
    request = make_request("x", row)
    asked(make(), [row])
    name = (request.block_hashes[bad] + bytes(4)).hex()
    (file,) = (path for path in files(tmp_path) if path.stem == name)
    file.write_bytes(file.read_bytes()[:-1])
    engine = asked(make(in_flight=in_flight, relational=PLAIN), [row, row[:18], row], 3)
    assert engine.answers["r0"] == engine.answers["r2"]
    first = {name: (engine.loaded[name], engine.lost[name]) for name in ("r0",)}
    assert first == ({"r0": (4 * bad, 20 - 4 * bad)} if bad else {"r0": (0, 0)})
    assert asked(make(), [row]).loaded == {"r0": 20}


@pytest.mark.parametrize("relational", [PLAIN, EXACT])
@pytest.mark.parametrize("in_flight", [0, 2])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("seed", range(4))
def test_rows_that_share_prefixes_beside_preemption_and_damage(make, tmp_path, relational, in_flight, policy, seed):
    traffic = SharedPrefixes(seed, shortest=(5, 4))

    def play() -> ContextEngine:
        engine = make(num_blocks=24, in_flight=in_flight, policy=policy, relational=relational, max_num_seqs=6)
        return traffic.play(engine)

    one = play()
    traffic.damage(tmp_path, 12)
    two = play()
    assert two.answers == one.answers and sum(two.loaded.values()) > 0
    three = play()
    assert three.answers == one.answers and sum(three.lost.values()) == 0
    if relational is EXACT:
        assert sum(engine.scheduler.partial_reuse.counters.tokens_saved for engine in (one, two, three)) > 0


def test_a_model_of_several_kinds_of_attention_is_refused(make):
    from fake_worker import full_attention, sliding_window

    with pytest.raises(RelationalError, match=r"models of full attention; this one has .*SlidingWindowSpec"):
        make(spec=[full_attention(), sliding_window()])
