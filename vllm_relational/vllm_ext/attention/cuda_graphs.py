"""Further CUDA graphs of decode batches, for steps whose requests are all dense, or all sparse.

A captured graph serves every mix of requests: it launches the kernels of dense and of sparse attention in every sparse
layer. Those that find nothing to do return at once, which costs about 10 us per layer all the same. The second model
runner of vLLM 0.32.0 holds its graphs in a ``CudaGraphManager``. ``adopt`` turns an engine's into one that captures the
graphs of decode batches again, while the builders of metadata (``backend.py``) leave sparse or dense
attention out, and replays such a graph in steps in which every builder says that the batch is of its kind. Other model
runners and workers keep their one graph.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from vllm.config import CUDAGraphMode
from vllm.logger import init_logger

from vllm_relational.vllm_ext.attention.batch_rows import Kind

logger = init_logger("vllm.relational.attention")

MAX_SPARSE = 16
"""Requests of the largest batch with a graph for sparse requests only: what it saves is little beside more."""

_NEEDED = ("graphs", "_capture_descs", "_max_full_descs_to_capture", "capture", "dispatch", "run_fullgraph")


def follow(runner: Any) -> None:
    """From now on this model runner captures further graphs, wherever it captures graphs."""
    if not hasattr(runner, "cudagraph_manager"):  # the first model runner
        return
    try:
        usual = weakref.WeakMethod(runner.capture_model)  # the runner is not to hold itself
    except (AttributeError, TypeError) as error:
        return _give_up(error)

    def capture_model(*args: Any, **kwargs: Any) -> Any:
        method: Any = usual()
        adopt(method.__self__)  # vLLM makes a manager for measuring memory and another to keep
        return method(*args, **kwargs)

    runner.capture_model = capture_model


def adopt(runner: Any) -> None:
    """Make this runner's manager one with further graphs, if there is anything to capture and any layer may be
    sparse."""
    try:
        manager = runner.cudagraph_manager
        if manager is None or isinstance(manager, DecodeGraphs) or not manager.needs_capture():
            return
        builders, usual = _builders(runner), _checked(manager)
        if builders:
            manager.__class__ = _with_decode_graphs(usual)
            manager.dipr_builders, manager.graphs_of = builders, {}
    except (AttributeError, TypeError) as error:
        _give_up(error)


def _builders(runner: Any) -> list[Any]:
    """Those that know which requests are sparse, of all groups of layers."""
    from vllm_relational.vllm_ext.attention.backend import DiprBuilder

    found = [group.get_metadata_builder() for groups in runner.attn_groups for group in groups]
    return [builder for builder in found if isinstance(builder, DiprBuilder)]


def _checked(manager: Any) -> Any:
    for name in _NEEDED:
        getattr(manager, name)
    return type(manager)


def _give_up(error: Exception) -> None:
    logger.warning_once("DIPR attention: dense or sparse batches get no CUDA graphs of their own: %s", error)


@cache
def _with_decode_graphs(manager: Any) -> Any:
    return type(f"Dipr{manager.__name__}", (DecodeGraphs, manager), {})


class DecodeGraphs:
    """Mixed in before vLLM's ``CudaGraphManager``; ``graphs``, which vLLM counts, stay as they are."""

    dipr_builders: list[Any]
    graphs_of: dict[Kind, dict[Any, Any]]
    graphs: dict[Any, Any]
    vllm_config: Any
    _capture_descs: dict[Any, list[Any]]
    _max_full_descs_to_capture: int | None

    def capture(self, *args: Any, **kwargs: Any) -> None:
        """As vLLM, and then the further graphs."""
        self._drop()
        super().capture(*args, **kwargs)  # type: ignore[misc]
        twins = {kind: found for kind in Kind if (found := self._twins(kind))}
        if twins and self._max_full_descs_to_capture is None:
            for kind, descs in twins.items():
                self._capture_kind(kind, descs, args, kwargs)
            self._spare_rows()
        elif twins:  # vLLM measures memory by a sample, times the number of graphs, and throws this manager away
            self._capture_descs[CUDAGraphMode.FULL] = sum(twins.values(), self._capture_descs[CUDAGraphMode.FULL])

    def _twins(self, kind: Kind) -> list[Any]:
        """The batches of decode graphs that may have sparse requests: other graphs leave sparse attention out."""
        return [
            desc
            for desc in self._capture_descs.get(CUDAGraphMode.FULL, [])
            if desc.uniform_token_count is not None and desc.num_ubatches == 1 and self._may_be_sparse(desc)
            if kind == Kind.DENSE or (desc.uniform_token_count == 1 and desc.num_reqs <= MAX_SPARSE)
        ]

    def _may_be_sparse(self, desc: Any) -> bool:
        """Whether the usual graph has sparse attention in it."""
        return any(builder.ever_sparse(desc.num_reqs) for builder in self.dipr_builders)

    def _capture_kind(self, kind: Kind, twins: list[Any], args: Any, kwargs: Any) -> None:
        kwargs = {**kwargs, "progress_bar_desc": f"Capturing {kind.value} CUDA graphs"}
        try:
            with self._only(kind, twins) as graphs:
                super().capture(*args, **kwargs)  # type: ignore[misc]
            self.graphs_of[kind] = graphs
        except torch.AcceleratorError:
            raise  # the GPU is in no state to go on
        except Exception as error:
            if self.vllm_config.parallel_config.world_size_across_dp > 1:
                raise  # the other processes wait in the collectives of this capture
            _give_up(error)

    def _spare_rows(self) -> None:
        """A builder whose dense batches no graph reads the rows of need not make them. With several builders a graph of
        sparse batches may, with drafts those of the drafting model."""
        graphs, dense = self._capture_descs[CUDAGraphMode.FULL], self.graphs_of.get(Kind.DENSE, {})
        is_read = any(desc not in dense and self._may_be_sparse(desc) for desc in graphs)
        is_alone = len(self.dipr_builders) == 1 and self.vllm_config.speculative_config is None
        for builder in self.dipr_builders:
            builder.dense_has_no_rows = is_alone and not is_read

    @contextmanager
    def _only(self, kind: Kind, twins: list[Any]) -> Iterator[dict[Any, Any]]:
        """vLLM captures these batches only, as of this kind, into the dictionary that this yields."""
        descs, graphs = self._capture_descs, self.graphs
        self._capture_descs, self.graphs = {CUDAGraphMode.FULL: twins}, {}
        for builder in self.dipr_builders:
            builder.capture_as = kind
        try:
            yield self.graphs
        finally:
            self._capture_descs, self.graphs = descs, graphs
            for builder in self.dipr_builders:
                builder.capture_as = None

    def dispatch(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM, at the start of a step: no builder has said anything of its batch yet."""
        self._forget()
        return super().dispatch(*args, **kwargs)  # type: ignore[misc]

    def run_fullgraph(self, desc: Any) -> Any:
        """As vLLM, by the graph of the batch's kind if every builder said in this step that it is of that kind."""
        usual, kinds = self.graphs, {builder.kind for builder in self.dipr_builders}
        further = self.graphs_of.get(kinds.pop(), {}) if len(kinds) == 1 else {}
        if desc in further:
            self.graphs = further
        elif self._may_be_sparse(desc) and not all(builder.has_rows for builder in self.dipr_builders):
            raise RuntimeError("DIPR attention: a captured graph would read the rows of an earlier batch")
        try:
            return super().run_fullgraph(desc)  # type: ignore[misc]
        finally:
            self.graphs = usual
            self._forget()

    def _forget(self) -> None:
        for builder in self.dipr_builders:
            builder.kind = None

    def release_graphs(self) -> None:
        """As vLLM: they are captured again."""
        self._drop()
        super().release_graphs()  # type: ignore[misc]

    def _drop(self) -> None:
        self.graphs_of = {}
        for builder in self.dipr_builders:
            builder.dense_has_no_rows = False
