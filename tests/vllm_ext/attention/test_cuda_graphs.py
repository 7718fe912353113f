"""Which graphs vLLM's manager captures and replays with our hook; CUDA's graphs are replaced by what ran in them."""

import gc
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from attention_objects import LAYER, Batch, Request, Runner, make_config, make_spec
from vllm.config import CUDAGraphMode, set_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.worker.gpu import cudagraph_utils
from vllm.v1.worker.gpu.input_batch import InputBuffers
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.utils import AttentionGroup

from vllm_relational.vllm_ext.attention import cuda_graphs as decode_graphs
from vllm_relational.vllm_ext.attention import prompt_lengths, worker
from vllm_relational.vllm_ext.attention.batch_rows import Kind
from vllm_relational.vllm_ext.attention.cpu import DiprCpuBackend

DIPR = {"dense_below": 100}
SIZES = [1, 2, 4]
SHORT, LONG, PADDING = Request(1, 40), Request(1, 300), Request(0, 0)
FULL = CUDAGraphMode.FULL_DECODE_ONLY


class Graph:
    """In the place of ``torch.cuda.CUDAGraph``: which paths ran while it was captured, which when it is replayed."""

    capturing = None
    pools: list
    replayed: list

    def __init__(self):
        self.paths = []

    def replay(self):
        Graph.replayed.append(self.paths)


@contextmanager
def capture(graph, pool, stream):
    Graph.capturing = graph
    Graph.pools.append(pool)
    yield
    Graph.capturing = None


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    Graph.replayed, Graph.pools = [], []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    one = SimpleNamespace(is_first_rank=True, is_last_rank=True)
    replaced = {
        "get_pp_group": lambda: one,
        "graph_capture": lambda device: nullcontext(),
        "current_stream": lambda: None,
        "is_global_first_rank": lambda: False,
        "capture_pool": lambda pool, config: nullcontext(pool),
        "has_compiled_submodule": lambda model: True,
    }
    for name, function in replaced.items():
        monkeypatch.setattr(cudagraph_utils, name, function)
    monkeypatch.setattr(cudagraph_utils.current_platform, "get_global_graph_pool", lambda: "pool", raising=False)


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(decode_graphs.logger, "warning_once", lambda text, *given: found.append(text % given))
    return found


class Model(torch.nn.Module):
    """Runs the paths that any layer's metadata asks for, as ``DiprImpl.forward``."""

    fails = None

    def forward(self, input_ids, **_):
        context = get_forward_context()
        rows = [one.dipr for one in context.attn_metadata.values()]
        is_sparse, is_dense = any(one.some for one in rows), not all(one.every for one in rows)
        path = "mixed" if is_sparse and is_dense else "sparse" if is_sparse else "dense"
        if self.fails == path and Graph.capturing is not None:
            raise RuntimeError("out of memory")
        if Graph.capturing is not None:
            Graph.capturing.paths.append(path)
        self.runs = [*getattr(self, "runs", []), (context.cudagraph_runtime_mode, len(input_ids), path)]
        return torch.zeros(len(input_ids), 2)


class Engine(Runner):
    """A model runner with vLLM's manager, and two groups of layers with builders of their own."""

    def __init__(self, mode=FULL, backends=(DiprCpuBackend, DiprCpuBackend), query_len=1):
        self.config, device = make_config(DIPR), torch.device("cpu")
        compilation = self.config.compilation_config
        compilation.cudagraph_capture_sizes, compilation.max_cudagraph_capture_size = SIZES, max(SIZES)
        self.attn_groups = [[self.group(backend, index)] for index, backend in enumerate(backends)]
        self.builders = [groups[0].get_metadata_builder() for groups in self.attn_groups]
        self.cudagraph_manager = cudagraph_utils.ModelCudaGraphManager(self.config, device, mode, query_len)
        self.model, self.buffers = Model(), InputBuffers(16, 64, device)
        decode_graphs.follow(self)

    def group(self, backend, index):
        spec = backend.customize_spec(make_spec()) if issubclass(backend, DiprCpuBackend) else make_spec()
        group = AttentionGroup(backend, [LAYER.replace("3", str(index))], spec, index)
        with set_current_vllm_config(self.config):
            group.create_metadata_builders(self.config, torch.device("cpu"))
        return group

    def capture_model(self, *, profile_only=False):
        groups = [SimpleNamespace(layer_names=groups[0].layer_names) for groups in self.attn_groups]
        state = SimpleNamespace(
            prepare_dummy_inputs=lambda *_: {}, max_model_len=4096, supports_mm_inputs=False, encoder_cache=None
        )
        state.prepare_attn = DefaultModelState.prepare_attn.__get__(state)
        tables = SimpleNamespace(
            cp_size=1,
            get_dummy_block_tables=lambda num_reqs: [torch.zeros(num_reqs, 4, dtype=torch.int32) for _ in groups],
            get_dummy_slot_mappings=lambda num_tokens: torch.zeros(len(groups), num_tokens, dtype=torch.int64),
        )
        given = (self.model, state, self.buffers, None, tables, self.attn_groups)
        self.cudagraph_manager.capture(*given, SimpleNamespace(kv_cache_groups=groups))
        return 7

    def prepare(self, *batches):
        """A step until its graph: vLLM dispatches, then every builder builds."""
        lengths = [request.query_len for request in (batches or [[SHORT]])[0] if request.query_len]
        uniform = lengths[0] if len(set(lengths)) == 1 else None
        desc = self.cudagraph_manager.dispatch(len(lengths), sum(lengths), uniform, 0)
        for builder, requests in zip(self.builders, batches, strict=False):
            builder.build(0, Batch(requests).common())
        return desc

    def step(self, *batches):
        output = self.cudagraph_manager.run_fullgraph(self.prepare(*batches))
        (path,) = Graph.replayed.pop()
        return path, len(output)


def test_every_decode_graph_is_captured_for_dense_and_for_sparse_batches_too():
    engine = Engine()
    manager = engine.cudagraph_manager
    assert engine.capture_model() == 7
    assert isinstance(manager, cudagraph_utils.ModelCudaGraphManager)
    captured = manager._capture_descs[CUDAGraphMode.FULL]
    for graphs, path in ((manager.graphs, "mixed"), (dense_of(engine), "dense"), (sparse_of(engine), "sparse")):
        assert [graph.paths for graph in graphs.values()] == [[path]] * 3
        assert list(graphs) == captured
    assert manager.captured_token_counts() == SIZES
    assert Graph.pools == ["pool"] * 9
    assert all(builder.capture_as is None for builder in engine.builders)


def dense_of(engine):
    return engine.cudagraph_manager.graphs_of.get(Kind.DENSE)


def sparse_of(engine):
    return engine.cudagraph_manager.graphs_of.get(Kind.SPARSE)


def test_large_batches_have_no_graph_for_sparse_requests_only(monkeypatch):
    monkeypatch.setattr(decode_graphs, "MAX_SPARSE", 2)
    engine = Engine()
    engine.capture_model()
    assert [desc.num_reqs for desc in sparse_of(engine)] == [2, 1] and len(dense_of(engine)) == 3
    assert engine.step([LONG] * 2, [LONG] * 2) == ("sparse", 2)
    assert engine.step([LONG] * 4, [LONG] * 4) == ("mixed", 4)


def test_a_step_replays_the_graph_of_its_batch():
    engine = Engine()
    engine.capture_model()
    assert engine.step([SHORT], [SHORT]) == ("dense", 1)
    assert engine.step([LONG], [LONG]) == ("sparse", 1)
    assert engine.step([SHORT] * 4, [SHORT] * 4) == ("dense", 4)
    assert engine.step([SHORT, LONG], [SHORT, LONG]) == ("mixed", 2)
    assert engine.step([LONG] * 3 + [PADDING], [LONG] * 3 + [PADDING]) == ("sparse", 4)
    assert engine.step([LONG] * 3 + [SHORT], [LONG] * 3 + [SHORT]) == ("mixed", 4)


def test_the_last_token_of_a_prompt_is_not_sparse():
    engine = Engine()
    engine.capture_model()
    prompt = Request(1, 300, prefilling=True)
    assert engine.step([prompt], [prompt]) == ("mixed", 1)


@pytest.mark.parametrize("batches", [([SHORT], [LONG]), ([LONG], [SHORT])])
def test_groups_of_layers_that_do_not_agree_take_the_usual_graph(batches):
    engine = Engine()
    engine.capture_model()
    assert engine.step(*batches) == ("mixed", 1)


def test_no_word_of_an_earlier_step_chooses_a_graph():
    engine = Engine()
    engine.capture_model()
    assert engine.step([SHORT], [SHORT]) == ("dense", 1)
    assert engine.step() == ("mixed", 1)  # nobody built
    engine.prepare([SHORT] * 3 + [Request(2, 40)], [SHORT] * 3 + [Request(2, 40)])  # a step without a graph
    assert engine.step() == ("mixed", 1)
    engine.prepare([LONG] * 3 + [Request(2, 40)], [LONG] * 3 + [Request(2, 40)])
    assert engine.step() == ("mixed", 1)
    assert engine.step([SHORT]) == ("mixed", 1)  # one of two built
    assert engine.step([LONG]) == ("mixed", 1)


def test_a_builder_that_fails_has_said_nothing(monkeypatch):
    engine = Engine()
    engine.capture_model()
    for broken in ("split", "dense_below"):
        desc = engine.prepare([SHORT], [SHORT])
        assert engine.builders[1].kind == Kind.DENSE
        with monkeypatch.context() as patch:
            patch.setattr(engine.builders[1].splitter, broken, lambda *_: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                engine.builders[1].build(0, Batch([SHORT]).common())
        engine.cudagraph_manager.run_fullgraph(desc)
        assert Graph.replayed.pop() == ["mixed"]


def test_a_replay_that_fails_leaves_the_usual_graphs(monkeypatch):
    engine = Engine()
    engine.capture_model()
    desc = engine.prepare([SHORT], [SHORT])
    with monkeypatch.context() as patch:
        patch.setattr(Graph, "replay", lambda self: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            engine.cudagraph_manager.run_fullgraph(desc)
    assert engine.step() == ("mixed", 1)


def test_a_dummy_batch_says_nothing():
    engine = Engine()
    engine.capture_model()
    desc = engine.prepare()
    for builder in engine.builders:
        builder.build_for_cudagraph_capture(Batch([SHORT]).common())
    engine.cudagraph_manager.run_fullgraph(desc)
    assert Graph.replayed == [["mixed"]]


def test_drafts_are_verified_by_dense_graphs():
    engine = Engine(query_len=2)
    for builder in engine.builders:
        builder._may_replay = False
    engine.capture_model()
    assert engine.step([Request(2, 300)], [Request(2, 300)]) == ("dense", 2)
    assert not sparse_of(engine)


def test_rows_of_dense_batches_are_made_only_where_a_graph_reads_them():
    one = Engine(backends=(DiprCpuBackend,))
    (builder,) = one.builders
    assert builder.build(0, Batch([SHORT]).common()).dipr is not None
    one.capture_model()
    assert builder.build(0, Batch([SHORT]).common()).dipr is None
    assert builder.build(0, Batch([LONG]).common()).dipr.some
    assert one.step([SHORT]) == ("dense", 1) and one.step([LONG]) == ("sparse", 1)
    one.cudagraph_manager.release_graphs()
    assert builder.build(0, Batch([SHORT]).common()).dipr is not None


def test_a_graph_never_reads_rows_that_were_not_made():
    engine = Engine(backends=(DiprCpuBackend,))
    engine.capture_model()
    desc = engine.prepare([SHORT])
    engine.cudagraph_manager.dispatch(1, 1, 1, 0)  # forgets what the builder said
    with pytest.raises(RuntimeError, match="rows of an earlier batch"):
        engine.cudagraph_manager.run_fullgraph(desc)
    assert engine.step([LONG]) == ("sparse", 1) and engine.step([SHORT]) == ("dense", 1)


@pytest.mark.parametrize("case", ["two builders", "mixed batches", "drafts", "a capture that failed"])
def test_rows_that_another_graph_may_read_are_made(case, monkeypatch, warnings):
    mode = CUDAGraphMode.FULL if case == "mixed batches" else FULL
    engine = Engine(mode, backends=(DiprCpuBackend,) * (2 if case == "two builders" else 1))
    if case == "drafts":
        monkeypatch.setattr(engine.config, "speculative_config", SimpleNamespace(num_speculative_tokens=1))
    if case == "a capture that failed":
        engine.model.fails = "dense"
    engine.capture_model()
    for builder in engine.builders:
        assert builder.build(0, Batch([SHORT]).common()).dipr is not None


def test_an_answer_that_is_computed_again_is_not_dense(no_runner):
    batch = Batch([Request(2, 300, prompt_len=200)])
    engine, runner = Engine(), batch.runner()
    prompt_lengths.follow(engine.config, runner)
    assert not engine.builders[0].build(0, batch.common()).dipr.some
    assert engine.builders[0].kind is None


def test_batches_whose_contexts_are_never_long_enough_share_one_graph():
    engine = Engine()
    for builder in engine.builders:
        builder.splitter.dense_below = lambda num_reqs: 100 if num_reqs == 2 else 5000
    engine.capture_model()
    manager = engine.cudagraph_manager
    assert [desc.num_reqs for desc in dense_of(engine)] == [desc.num_reqs for desc in sparse_of(engine)] == [2]
    assert [graph.paths for graph in manager.graphs.values()] == [["dense"], ["mixed"], ["dense"]]
    assert engine.step([SHORT], [SHORT]) == ("dense", 1)
    assert engine.step([LONG, SHORT], [LONG, SHORT]) == ("mixed", 2)


def test_piecewise_graphs_are_captured_once():
    engine = Engine(CUDAGraphMode.FULL_AND_PIECEWISE)
    engine.capture_model()
    ran = [tokens for mode, tokens, _ in engine.model.runs if mode == CUDAGraphMode.PIECEWISE]
    assert ran == [4, 2, 1] and len(dense_of(engine)) == len(sparse_of(engine)) == 3


@pytest.mark.parametrize("sample", [None, 2])
def test_piecewise_graphs_alone_have_no_others(sample):
    engine = Engine(CUDAGraphMode.PIECEWISE, backends=(DiprCpuBackend,))
    manager = engine.cudagraph_manager
    manager._max_full_descs_to_capture = sample
    engine.capture_model()
    assert not manager.graphs_of and list(manager._capture_descs) == [CUDAGraphMode.PIECEWISE]
    assert engine.builders[0].build(0, Batch([SHORT]).common()).dipr is not None


def test_graphs_of_mixed_batches_have_no_other():
    engine = Engine(CUDAGraphMode.FULL)
    engine.capture_model()
    assert len(engine.cudagraph_manager.graphs) == 3 and not engine.cudagraph_manager.graphs_of
    assert engine.step([SHORT], [SHORT]) == ("mixed", 1)


def test_memory_is_measured_by_a_sample_for_all_kinds():
    engine = Engine()
    manager = engine.cudagraph_manager
    manager._max_full_descs_to_capture = 2
    engine.capture_model(profile_only=True)
    assert len(manager.graphs) == 2 and not manager.graphs_of
    assert len(manager._capture_descs[CUDAGraphMode.FULL]) == 3 * len(SIZES)


def test_graphs_are_released_and_captured_again():
    engine = Engine()
    engine.capture_model()
    engine.cudagraph_manager.release_graphs()
    assert not engine.cudagraph_manager.graphs_of and not engine.cudagraph_manager.graphs
    engine.capture_model()
    assert engine.step([SHORT], [SHORT]) == ("dense", 1)


@pytest.mark.parametrize("fails", ["dense", "sparse"])
def test_a_capture_that_fails_leaves_the_other_graphs(warnings, fails):
    engine = Engine()
    engine.model.fails = fails
    engine.capture_model()
    assert "out of memory" in warnings[0]
    for request, path in ((SHORT, "dense"), (LONG, "sparse")):
        assert engine.step([request], [request])[0] == ("mixed" if path == fails else path)
    assert list(engine.cudagraph_manager._capture_descs) == [CUDAGraphMode.FULL]
    assert all(builder.capture_as is None for builder in engine.builders)


def test_several_processes_fail_together(monkeypatch):
    engine = Engine()
    engine.model.fails = "dense"
    monkeypatch.setattr(engine.config.parallel_config, "world_size", 2)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.capture_model()


@pytest.mark.parametrize("missing", ["graphs", "_capture_descs", "_max_full_descs_to_capture"])
def test_another_manager_is_left_alone(missing, warnings):
    engine = Engine()
    delattr(engine.cudagraph_manager, missing)
    decode_graphs.adopt(engine)
    assert type(engine.cudagraph_manager) is cudagraph_utils.ModelCudaGraphManager
    assert missing in warnings[0]


def test_engines_without_sparse_layers_or_graphs_are_left_alone(warnings):
    plain = Engine(backends=(CPUAttentionBackend,))
    eager = Engine(CUDAGraphMode.NONE)
    for engine in (plain, eager):
        decode_graphs.adopt(engine)
        assert type(engine.cudagraph_manager) is cudagraph_utils.ModelCudaGraphManager
    nothing = Runner(cudagraph_manager=None)
    decode_graphs.adopt(nothing)
    assert not warnings


def test_runners_that_look_different_are_left_alone(warnings):
    first = Runner()
    decode_graphs.follow(first)
    assert vars(first) == {} and not warnings
    other = Runner(cudagraph_manager=None)
    decode_graphs.follow(other)
    assert "capture_model" in warnings[0]


def test_a_runner_does_not_hold_itself():
    engine = Engine()
    engine.capture_model()
    known = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert known() is None
    finally:
        gc.enable()


def test_our_worker_follows_its_runner(monkeypatch):
    class Base:
        vllm_config = object()

        def init_device(self):
            self.model_runner = Engine()

    monkeypatch.setattr(worker, "platform_worker", lambda: Base)
    made = worker.worker_class.__wrapped__()()
    made.init_device()
    made.model_runner.capture_model()
    assert dense_of(made.model_runner) and sparse_of(made.model_runner)
