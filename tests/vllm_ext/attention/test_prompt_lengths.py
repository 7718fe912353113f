"""How long prompts are, from both of vLLM's model runners; and that vLLM finds the worker that says so."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from attention_objects import Batch, Request, Runner
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_relational.vllm_ext.attention import prompt_lengths, worker
from vllm_relational.vllm_ext.settings import WORKER

ENGINE = object()
"""A configuration is told from others by its identity."""
pytestmark = pytest.mark.usefixtures("no_runner")


def test_nothing_is_known_without_a_runner():
    common = Batch([Request(1, 40)]).common()
    assert prompt_lengths.prompt_lengths(ENGINE, common) is None
    prompt_lengths.follow(ENGINE, Runner())  # gone at once
    assert prompt_lengths.prompt_lengths(ENGINE, common) is None


def test_engines_of_one_process_have_runners_of_their_own():
    other, few, many = object(), Batch([Request(1, 40, prompt_len=7)]), Batch([Request(1, 40, prompt_len=39)])
    runners = [few.runner(), many.runner()]
    prompt_lengths.follow(ENGINE, runners[0])
    prompt_lengths.follow(other, runners[1])
    assert prompt_lengths.prompt_lengths(ENGINE, few.common()).tolist() == [7]
    del runners[1]
    assert prompt_lengths.prompt_lengths(other, many.common()) is None
    prompt_lengths.follow(ENGINE, runners[0])
    assert len(prompt_lengths._runners) == 1


def test_rows_of_the_first_runner_are_its_requests():
    lengths = torch.tensor([7, 8, 9, 10], dtype=torch.int32)
    runner = Runner(input_batch=SimpleNamespace(num_prompt_tokens_cpu_tensor=lengths))
    prompt_lengths.follow(ENGINE, runner)
    assert prompt_lengths.prompt_lengths(ENGINE, Batch([Request(1, 40)] * 2).common()).tolist() == [7, 8]


def test_rows_of_the_second_runner_name_their_requests():
    batch = Batch([Request(1, 40, prompt_len=7), Request(1, 40, prompt_len=8)])
    runner = batch.runner()
    prompt_lengths.follow(ENGINE, runner)
    common = batch.common()
    common.req_idx = np.array([1, 0, 1])
    assert prompt_lengths.prompt_lengths(ENGINE, common).tolist() == [8, 7, 8]
    common.req_idx = None
    assert prompt_lengths.prompt_lengths(ENGINE, common) is None


def test_vllm_finds_the_worker():
    found = resolve_obj_by_qualname(WORKER)
    assert issubclass(found, CPUWorker) and found is worker.worker_class()
    with pytest.raises(AttributeError, match="no attribute Wroker"):
        _ = worker.Wroker
