"""How long prompts are, from both of vLLM's model runners; and that vLLM finds the worker that says so."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from attention_objects import Batch, Request, Runner
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_relational.vllm_ext import prompt_lengths, worker
from vllm_relational.vllm_ext.settings import WORKER

pytestmark = pytest.mark.usefixtures("no_runner")


def test_nothing_is_known_without_a_runner():
    common = Batch([Request(1, 40)]).common()
    assert prompt_lengths.prompt_lengths(common) is None
    prompt_lengths.follow(Runner())  # gone at once
    assert prompt_lengths.prompt_lengths(common) is None


def test_rows_of_the_first_runner_are_its_requests():
    lengths = torch.tensor([7, 8, 9, 10], dtype=torch.int32)
    runner = Runner(input_batch=SimpleNamespace(num_prompt_tokens_cpu_tensor=lengths))
    prompt_lengths.follow(runner)
    assert prompt_lengths.prompt_lengths(Batch([Request(1, 40)] * 2).common()).tolist() == [7, 8]


def test_rows_of_the_second_runner_name_their_requests():
    batch = Batch([Request(1, 40, prompt_len=7), Request(1, 40, prompt_len=8)])
    runner = batch.runner()
    prompt_lengths.follow(runner)
    common = batch.common()
    common.req_idx = np.array([1, 0, 1])
    assert prompt_lengths.prompt_lengths(common).tolist() == [8, 7, 8]
    common.req_idx = None
    assert prompt_lengths.prompt_lengths(common) is None


def test_vllm_finds_the_worker():
    found = resolve_obj_by_qualname(WORKER)
    assert issubclass(found, CPUWorker) and found is worker.worker_class()
    with pytest.raises(AttributeError, match="no attribute Wroker"):
        _ = worker.Wroker
