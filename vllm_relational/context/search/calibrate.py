"""What the searches cost on this machine: measured once, in CPU time of one thread, and kept in a file.

Measured on made-up keys that are as hard to search as those of a model, of three lengths; or on keys and queries that
are given: those of a real context say more. Attention to all tokens is torch's where torch is loaded, as sessions
compute it, else that of ``merge.attend``. A graph is measured only when it is asked for, with queries to build it from:
it takes seconds, and an optimizer takes no way that was not measured.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vllm_relational.context.errors import ContextError
from vllm_relational.context.search import loops
from vllm_relational.context.search.hits import Hits, KeyIndex
from vllm_relational.context.search.indexes import build
from vllm_relational.context.search.merge import attend, tokens_between
from vllm_relational.context.search.optimizer import SearchCosts, WayCost
from vllm_relational.files.atomic import replacing
from vllm_relational.records import RelationalError

FORMAT = 2
LENGTHS = (2048, 16384, 65536)
ALPHA = 4e-3
QUERY_HEADS, HEAD_SIZE, REPEATS, ASKED = 7, 64, 3, 3
ENV = "VLLM_RELATIONAL_CONTEXT_COSTS"


class StoredCosts(msgspec.Struct, frozen=True):
    """The file."""

    format: int
    machine: str
    hit_us: float
    hit_share: float
    hits: float
    ways: dict[str, WayCost]


def machine_name() -> str:
    """Processor and instructions: costs belong to these."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        model = ""
    instructions = loops.level() or loops.simd_levels()[-1]
    return f"{model or platform.machine()}, {instructions}{', torch' if _torch() else ''}"


def _torch() -> Any:
    """The module, where the process has loaded it: a search alone does not."""
    return sys.modules.get("torch")


def costs_path() -> Path:
    """Where costs are kept: ``VLLM_RELATIONAL_CONTEXT_COSTS``, else the user's cache folder."""
    if os.environ.get(ENV):
        return Path(os.environ[ENV])
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "vllm-relational" / "context_costs.json"


def costs(path: Path | None = None, measure: Callable[[], SearchCosts] | None = None) -> SearchCosts:
    """The costs of this machine: from the file, else measured and kept there. A file that is damaged, of another
    machine or of another format is measured again; one that cannot be written is not an error."""
    path = path or costs_path()
    found = _read(path)
    if found is None:
        found = (measure or calibrate)()
        _write(path, found)
    return found


def _read(path: Path) -> SearchCosts | None:
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=StoredCosts)
        if stored.format != FORMAT or stored.machine != machine_name():
            return None
        return SearchCosts(stored.ways, stored.hit_us, stored.hit_share, stored.hits, stored.machine)
    except (OSError, msgspec.MsgspecError, TypeError):
        return None


def _write(path: Path, table: SearchCosts) -> None:
    stored = StoredCosts(FORMAT, table.machine, table.hit_us, table.hit_share, table.hits, dict(table.ways))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(msgspec.json.format(msgspec.json.encode(stored)))
    except (OSError, RelationalError):
        pass


def synthetic(num_keys: int, head_size: int = HEAD_SIZE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys and values bfloat16 (uint16) ``[num_keys, head_size]``, and queries float32 ``[ASKED, QUERY_HEADS,
    head_size]``.

    Neighbouring keys are alike, channels of different width, the heads of a query half alike: at 16K keys and alpha
    4e-3 some 200 keys are within beta of a head, and of the keys clusters open .35 and codes leave .2; on the keys of
    Qwen2.5-Coder-0.5B it is 200, .35 and .1, averaged over twelve KV heads.
    """
    random = np.random.default_rng(0)
    widths = np.exp(random.normal(0, 0.5, head_size))
    centres = np.repeat(random.normal(0, 1, (-(-num_keys // 32), head_size)), 32, 0)[:num_keys]
    keys = (centres + random.normal(0, 0.4, (num_keys, head_size))) * widths
    shared, own = random.normal(0, 3.2, (ASKED, 1, head_size)), random.normal(0, 2.4, (ASKED, QUERY_HEADS, head_size))
    return _bf16(keys), _bf16(random.normal(0, 1, keys.shape)), _as_float(_bf16((shared + own) / widths))


def _bf16(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def _as_float(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.uint32) << 16).view(np.float32)


def calibrate(
    kinds: Sequence[str] = ("flat", "int4", "clusters"),
    lengths: Sequence[int] = LENGTHS,
    samples: Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]] = synthetic,
    alpha: float = ALPHA,
    sampled: np.ndarray | None = None,
) -> SearchCosts:
    """Measure ``kinds``, and ``full``, at some lengths.

    samples: number of keys -> keys, values, and queries ``[num_queries, num_heads, head_size]``, such as of a real
    context; sampled: queries that a graph is built from. Some seconds.
    """
    if len(lengths) < 2 or list(lengths) != sorted({*lengths}) or lengths[0] < 1:
        raise ContextError(f"two or more ascending lengths make a line, not {list(lengths)}")
    seen = [_Measured(*samples(length), alpha=alpha, sampled=sampled) for length in lengths]
    ways = {"full": WayCost(0, 0, measured=_points(lengths, [each.full_us() for each in seen]))}
    for kind in kinds:
        ways[kind] = _way(kind, lengths, [each.way(kind) for each in seen])
    hits = [each.listed for each in seen]
    share = max(0.0, (hits[-1] - hits[0]) / (lengths[-1] - lengths[0]))
    return SearchCosts(ways, seen[-1].hit_us(), share, max(0.0, hits[0] - share * lengths[0]), machine_name())


def _points(lengths: Sequence[int], us: Sequence[float]) -> tuple[tuple[int, float], ...]:
    return tuple((int(length), round(float(each), 1)) for length, each in zip(lengths, us, strict=True))


def _way(kind: str, lengths: Sequence[int], seen: Sequence[tuple[float, ...]]) -> WayCost:
    us, build_us, size, visited, recall = zip(*seen, strict=True)
    return WayCost(
        fixed_us=0.0,
        key_us=0.0,
        build_key_us=build_us[-1] / lengths[-1],
        index_bytes=size[-1] / lengths[-1],
        resident=min(1.0, visited[-1] / lengths[-1]),
        recall=min(recall),
        measured=_points(lengths, us),
    )


class _Measured:
    """The ways on one set of keys."""

    def __init__(
        self, keys: np.ndarray, values: np.ndarray, queries: np.ndarray, alpha: float, sampled: np.ndarray | None
    ) -> None:
        self.keys, self.values, self.queries, self.sampled = keys, values, queries, sampled
        self.scale = keys.shape[1] ** -0.5
        self.beta = -float(np.log(alpha)) / self.scale
        self.exact = [build("flat", keys).dipr(each, self.beta) for each in queries]
        self.listed = float(np.mean([len(np.unique(hits.tokens)) for hits in self.exact]))

    def full_us(self) -> float:
        """Attention to all tokens."""
        torch = _torch()
        if torch is None:
            return cpu_us(self._attend_to_all)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return cpu_us(lambda: self._attend_by(torch))
        finally:
            torch.set_num_threads(threads)

    def _attend_to_all(self) -> None:
        hits = tokens_between(self.keys, self.queries[0], 0, len(self.keys))
        attend(self.keys, self.values, hits, self.queries[0], self.scale)

    def _attend_by(self, torch: Any) -> None:
        """The query heads as rows of one matrix: the keys are read once."""
        is_bf16 = self.keys.dtype == np.uint16
        kept = [torch.from_numpy(each.view(np.int16) if is_bf16 else each) for each in (self.keys, self.values)]
        keys, values = (each.view(torch.bfloat16) if is_bf16 else each for each in kept)
        rows = torch.from_numpy(self.queries[0]).to(keys.dtype)
        torch.nn.functional.scaled_dot_product_attention(*(each[None, None] for each in (rows, keys, values)))

    def hit_us(self) -> float:
        """Of one token within beta of some head."""

        def listed() -> None:
            for hits, queries in zip(self.exact, self.queries, strict=True):
                attend(self.keys, self.values, hits, queries, self.scale)

        return cpu_us(listed) / max(self.listed * len(self.queries), 1.0)

    def way(self, kind: str) -> tuple[float, ...]:
        """Microseconds of a search and of building, bytes, keys that it reads, recall."""
        before = time.thread_time()
        index: KeyIndex = build(kind, self.keys, self.sampled)
        build_us = (time.thread_time() - before) * 1e6
        found = [index.dipr(each, self.beta) for each in self.queries]
        us = cpu_us(lambda: [index.dipr(each, self.beta) for each in self.queries]) / len(self.queries)
        read = float(np.mean([hits.visited for hits in found]))
        return us, build_us if kind != "flat" else 0.0, float(index.nbytes), read, self._recall(found)

    def _recall(self, found: Sequence[Hits]) -> float:
        shares = [
            np.isin(exact.of(head), own.of(head)).mean()
            for exact, own in zip(self.exact, found, strict=True)
            for head in range(exact.num_heads)
            if len(exact.of(head))
        ]
        return float(np.mean(shares)) if shares else 1.0


def cpu_us(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median CPU time of this thread, in microseconds."""
    times = []
    for _ in range(repeats):
        before = time.thread_time()
        run()
        times.append(time.thread_time() - before)
    return float(np.median(times)) * 1e6
