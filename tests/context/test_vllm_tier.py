"""The tier below vLLM's offloading, without vLLM's manager above it: blocks go to the disk and come back."""

from __future__ import annotations

import random
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

base = pytest.importorskip("vllm.v1.kv_offload.base")

from vllm.v1.kv_offload.tiering.base import TransferJob  # noqa: E402
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory  # noqa: E402

from vllm_relational.context.vllm_arguments import context_arguments  # noqa: E402

CHUNKS, SIZE = 40, 4096
ASKER = base.ReqContext("r")


class Tier:
    """A tier as vLLM makes it, with its memory."""

    def __init__(self, folder: Path, **facts) -> None:
        config = context_arguments(folder, False, memory_gib=1)["kv_transfer_config"]["kv_connector_extra_config"]
        self.memory = np.zeros((CHUNKS, SIZE), np.uint8)
        spec = SimpleNamespace(blocks_per_chunk=1)
        (settings,) = config["secondary_tiers"]
        settings = {**settings, "facts": {"weights": "w", **facts}}
        self.made = SecondaryTierFactory.create_secondary_tier(settings, memoryview(self.memory), spec)
        self.jobs = 0

    def job(self, keys, chunks, is_promotion):
        self.jobs += 1
        return TransferJob(self.jobs, keys, np.array(chunks, np.int32), is_promotion, ASKER)

    def finish(self):
        self.made.drain_jobs()
        (result,) = self.made.get_finished_jobs()
        return result

    def store(self, numbers):
        for number in numbers:
            self.memory[number] = content(number)
        self.made.submit_store(self.job([key(number) for number in numbers], numbers, False))
        return self.finish()

    def load(self, numbers):
        self.made.submit_load(self.job([key(number) for number in numbers], numbers, True))
        assert self.made.is_loading("r") and not self.made.is_loading("other")
        result = self.finish()
        assert not self.made.is_loading("r")
        return result

    def lookup(self, number):
        """As the manager asks: again until it is known."""
        for _ in range(1000):
            found = self.made.lookup(key(number), ASKER)
            if found is not base.LookupResult.RETRY:
                return found
            self.made.on_schedule_end(None)
            time.sleep(0.001)
        raise AssertionError("never known")


def key(number):
    return base.make_offload_key(random.Random(number).randbytes(32), 0)


def content(number):
    return np.frombuffer(random.Random(1000 + number).randbytes(SIZE), np.uint8)


@pytest.fixture
def make(tmp_path):
    made = []

    def tier(**facts):
        made.append(Tier(tmp_path, **facts))
        return made[-1]

    yield tier
    for each in made:
        each.made.shutdown()


def test_another_process_loads_what_one_stored(make):
    assert make().store(range(CHUNKS)).success
    other = make()
    assert [other.lookup(number) for number in (0, 39)] == [base.LookupResult.HIT] * 2
    assert other.lookup(99) is base.LookupResult.MISS
    assert other.load(range(CHUNKS)).success
    assert all((other.memory[number] == content(number)).all() for number in range(CHUNKS))


def test_what_is_damaged_or_gone_is_missing_and_the_rest_is_kept(make):
    first = make()
    first.store(range(CHUNKS))
    store = first.made._store
    with open(store.path_of(key(3)), "r+b") as file:
        file.seek(500)
        file.write(b"\xff\0\xff")
    Path(store.path_of(key(7))).unlink()
    other = make()
    assert other.lookup(3) is other.lookup(7) is base.LookupResult.HIT or other.lookup(7) is base.LookupResult.MISS
    result = other.load(range(CHUNKS))
    assert not result.success
    assert set(result.successful_keys) == {key(number) for number in range(CHUNKS)} - {key(3), key(7)}
    assert other.lookup(3) is base.LookupResult.MISS  # or vLLM would ask for ever
    assert other.store([3]).success and (make().load([3])).success


def test_engines_of_other_facts_do_not_meet(make):
    make().store(range(3))
    assert make(weights="v").lookup(0) is base.LookupResult.MISS
    assert make(attention="dipr").lookup(0) is base.LookupResult.MISS
