"""vLLM's offloading with our tier below it, under two schedulers: all of it but the copies between GPU and CPU memory,
which are made here."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_worker import BLOCK_SIZE, Engine, make_request, make_scheduler
from page_worker import PAGE, PageWorker, SharedPrefixes, files, tokens
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

from vllm_relational.context.vllm_arguments import context_arguments
from vllm_relational.context.vllm_report import loaded_of
from vllm_relational.vllm_ext.scheduler import RelationalScheduler

pytestmark = pytest.mark.slow  # vLLM's scheduler and connector

EXACT = {"order": "arrival", "token_exact": True}
PLAIN = {"order": "arrival"}
PER_FILE = 2
CHUNK = PER_FILE * BLOCK_SIZE


class OffloadEngine(Engine):
    """An engine whose blocks go to CPU memory and to the disk."""

    def __init__(
        self, folder: Path, model: Path, num_blocks: int = 60, in_flight: int = 1, chunks: int = 60, **settings: Any
    ) -> None:
        config = context_arguments(folder, False, memory_gib=1)["kv_transfer_config"]
        config["kv_connector_extra_config"] |= {
            "weights": settings.pop("weights", "w"), "blocks_per_chunk": PER_FILE, "cpu_bytes_to_use": chunks * 4096,
        }  # fmt: skip
        cls = settings.pop("cls", RelationalScheduler)
        transfer = KVTransferConfig(engine_id=uuid.uuid4().hex, **config)
        super().__init__(make_scheduler(cls, model, num_blocks, transfer=transfer, **settings), in_flight)
        self.worker = PageWorker(num_blocks)
        self.manager = self.scheduler.connector.scheduler.manager
        self.memory = np.asarray(self.manager.primary_tier.get_kv_memoryview())
        self.deferred: list[tuple[int, Any]] = []
        self.done = OffloadingWorkerMetadata()
        self.loaded: dict[str, int] = {}

    def _copy(self, job: Any, is_load: bool) -> None:
        gpu, cpu = (job.dst_spec, job.src_spec) if is_load else (job.src_spec, job.dst_spec)
        start = gpu.block_indices[0] % PER_FILE
        for place, block in enumerate(gpu.block_ids, start):
            row = self.memory[cpu.chunk_ids[place // PER_FILE]][: PER_FILE * PAGE].reshape(PER_FILE, PAGE)
            page = self.worker.store.bytes[int(block)].numpy()
            if is_load:
                page[:] = row[place % PER_FILE]
            else:
                row[place % PER_FILE] = page

    def _store_deferred(self) -> None:
        """As vLLM's worker: at the beginning of the next step, or before blocks are used again."""
        for number, job in self.deferred:
            self._copy(job, is_load=False)
            self.done.mark_completed(number)
        self.deferred = []

    def step(self) -> None:
        step = self.scheduler.schedule()
        self.preemptions += len(step.preempted_req_ids or ())
        told = step.kv_connector_metadata
        for number in sorted(told.jobs_to_flush or ()):
            if number in told.store_jobs:
                self.deferred.append((number, told.store_jobs.pop(number)))
        self._store_deferred()
        answer = self.worker.execute(step) if step.total_num_scheduled_tokens else ModelRunnerOutput([], {})
        for number, job in told.load_jobs.items():
            self._copy(job, is_load=True)
            self.done.mark_completed(number)
        self.deferred += told.store_jobs.items()
        done, self.done = self.done, OffloadingWorkerMetadata()
        answer.kv_connector_output = KVConnectorOutput(
            finished_recving={job.req_id for job in told.load_jobs.values()},
            kv_connector_worker_meta=done if done.completed_jobs else None,
        )
        self.steps.append((step, answer))
        while len(self.steps) > (self.in_flight if step.total_num_scheduled_tokens else 0):
            self._take_in()

    def _take_in(self) -> None:
        outputs = self.scheduler.update_from_output(*self.steps.popleft())
        for answers in outputs.values():
            for answer in answers.outputs:
                self.answers.setdefault(answer.request_id, []).extend(answer.new_token_ids)
                if answer.finish_reason is not None:
                    self.loaded[answer.request_id] = loaded_of(answer.kv_transfer_params).tokens

    def run(self, limit: int = 20_000) -> dict[str, list[int]]:
        """Until all requests are answered, and all blocks are on the disk."""
        while self.scheduler.has_requests() or self.steps:
            self.step()
            limit -= 1
            assert limit, "requests or blocks are left over"
        return self.answers

    @property
    def computed(self) -> dict[str, int]:
        return self.worker.computed


@pytest.fixture
def make(tmp_path, model_folder):
    made = []

    def engine(**settings):
        made.append(OffloadEngine(tmp_path, model_folder, **settings))
        return made[-1]

    yield engine
    for each in made:
        each.memory = None
        each.scheduler.shutdown()


def asked(engine: OffloadEngine, rows: list[list[int]], max_tokens: int = 1) -> OffloadEngine:
    for place, row in enumerate(rows):
        engine.add(make_request(f"r{place}", row, max_tokens))
    engine.run()
    return engine


@pytest.mark.parametrize("cls", [AsyncScheduler, RelationalScheduler])
@pytest.mark.parametrize("in_flight", [0, 2])
@pytest.mark.parametrize("length", [7, 8, 9, 31, 32, 33])
def test_a_second_engine_computes_the_rest(make, cls, in_flight, length):
    row = tokens(1, length)
    one = asked(make(cls=cls, in_flight=in_flight, relational=PLAIN), [row])
    two = asked(make(cls=cls, in_flight=in_flight, relational=PLAIN), [row])
    whole = length // CHUNK * CHUNK
    assert two.answers == one.answers and one.loaded == {"r0": 0} and two.loaded == {"r0": whole}
    assert two.computed["r0"] == max(length - whole, 1)


def test_other_weights_share_nothing(make):
    row = tokens(5, 20)
    asked(make(), [row])
    assert asked(make(weights="v"), [row]).loaded == {"r0": 0}


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_from_a_bad_file_on_all_is_computed_and_stored_again(make, tmp_path, bad):
    row = tokens(6, 25)
    asked(make(), [row])
    hashes = make_request("x", row).block_hashes
    name = (hashes[PER_FILE * bad + PER_FILE - 1] + bytes(4)).hex()
    (file,) = (path for path in files(tmp_path) if path.stem == name)
    file.write_bytes(file.read_bytes()[:-1])
    engine = asked(make(relational=PLAIN), [row])
    assert engine.loaded == {"r0": CHUNK * bad} and engine.computed["r0"] == 25 - CHUNK * bad
    assert asked(make(), [row]).loaded == {"r0": 24}


def test_a_context_that_does_not_fit_into_memory_is_computed(make):
    row = tokens(7, 60)
    one = asked(make(), [row])
    two = asked(make(chunks=3), [row])
    assert two.answers == one.answers and two.loaded["r0"] == 3 * CHUNK


@pytest.mark.parametrize("relational", [PLAIN, EXACT])
@pytest.mark.parametrize("in_flight", [0, 2])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("seed", range(3))
def test_rows_that_share_prefixes_beside_preemption_and_damage(make, tmp_path, relational, in_flight, policy, seed):
    traffic = SharedPrefixes(seed, shortest=(9, 9))

    def play() -> OffloadEngine:
        engine = make(num_blocks=24, in_flight=in_flight, policy=policy, relational=relational, max_num_seqs=6)
        return traffic.play(engine)

    one = play()
    traffic.damage(tmp_path, 6)
    two = play()
    assert two.answers == one.answers and sum(two.loaded.values()) > 0
    three = play()
    assert three.answers == one.answers
    if relational is EXACT:
        assert sum(engine.scheduler.partial_reuse.counters.tokens_saved for engine in (one, two, three)) > 0
