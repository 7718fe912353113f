"""The benchmark of whole engines: what is kept when a part of it fails, and its random model and texts."""

import argparse
import csv
import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))
import dipr_engine
import dipr_plots
import dipr_process
import dipr_random_model
from dipr_engine import FP8, SPARSE, STOCK

from vllm_relational.records import RelationalError


def timed(context, ms, **more):
    return {"context": context, "batch": 1, "ms": ms, "prefill_seconds": 1.0, "listed": 0.5, **more}


@pytest.fixture
def compare(monkeypatch, tmp_path):
    """``compare(results, backends)``: lines and failures, where a backend's process finds ``results[backend]``, and the
    lines that were in the CSV before each process."""

    def run(results, backends):
        file = tmp_path / "times.csv"
        before = {}

        def process(script, part, backend, known, timeout_s):
            before[backend] = len(file.read_text().splitlines()) if file.exists() else 0
            return results[backend]

        monkeypatch.setattr(dipr_engine, "in_own_process", process)
        options = argparse.Namespace(
            backends=backends,
            csv=file,
            where=("abc", "a machine"),
            timeout=1.0,
            layers=2,
            logit_std=3.0,
            dipr={},
            mode=0,
            topics=12,
            tokens=128,
        )
        lines, failed = dipr_engine.compare_speed(options, Path())
        written = list(csv.DictReader(file.open())) if file.exists() else []
        assert [line["backend"] for line in written] == [line["backend"] for line in lines]
        return written, failed, before

    return run


def test_flash_attention_is_timed_first_and_every_backend_is_written_when_it_is_done(compare):
    results = {
        SPARSE: {"kv_tokens": 9, "cases": [timed(100, [2.0, 1.0, 4.0]), timed(50, [1.0])]},
        STOCK: {"kv_tokens": 9, "cases": [timed(100, [3.0])]},
        FP8: {"kv_tokens": 9, "cases": [timed(100, [6.0])]},
    }
    written, failed, before = compare(results, [SPARSE, FP8, STOCK])
    assert [line["speed_up"] for line in written] == ["1.0", "1.5", "", "0.5"]
    assert before == {STOCK: 0, SPARSE: 2, FP8: 4}  # a line of names, and one a case
    assert (written[1]["ms_a_token"], written[1]["fastest"], written[1]["slowest"]) == ("2.0", "1.0", "4.0")
    assert not failed


def test_what_was_timed_before_a_failure_stays(compare):
    cases = [
        timed(100, [2.0], kernels_error="no profiler"),
        {"context": 50, "batch": 1, "error": "out of memory"},
        {"context": 200, "batch": 16, "error": dipr_engine.DOES_NOT_FIT},
    ]
    results = {STOCK: {"error": "exit status 1"}, SPARSE: {"kv_tokens": 9, "cases": cases, "error": "exit status -9"}}
    written, failed, _ = compare(results, [STOCK, SPARSE])
    assert [(line["backend"], line["context"]) for line in written] == [(SPARSE, "100")]
    assert failed == [
        f"{STOCK}: exit status 1", f"{SPARSE}: exit status -9", f"{SPARSE}, 1 x 100: no profiler",
        f"{SPARSE}, 1 x 50: out of memory",
    ]  # fmt: skip


def test_gaps_are_those_of_first_differences(monkeypatch):
    scored = [
        [[[5, -0.1], [6, -2.0]], [[8, -0.625], [7, -0.5]], [[1, 0.0]]],
        [[[5, -0.1], [6, -2.0]]],
        [[[5, -0.1], [6, -2.0]]],
    ]
    one = {"answers": [[5, 7, 1], [5], [5]], "scored": scored}
    assert dipr_engine.gaps(one, [[5, 8, 2], [5], [9]]) == [0.125, None]
    assert dipr_engine.gaps(one, one["answers"]) == []
    found = {
        STOCK: {**one, "reversed": [[5, 7, 1], [6], [5]], "cached": one["answers"]},
        SPARSE: {**one, "answers": [[5, 8, 1], [5], [5]], "cached": [[5, 8, 1], [5], [6]]},
    }
    monkeypatch.setattr(dipr_engine, "in_own_process", lambda script, part, backend, known, timeout_s: found[backend])
    assert dipr_engine.compare_answers(Path(), 1.0) == {
        "prompts": 3, "different": [0.125], "different_of_stock_reversed": [1.9],
        "different_when_cached": [1.9], "different_of_stock_when_cached": [],
    }  # fmt: skip
    found[STOCK]["interrupted"], found[SPARSE]["interrupted"] = [[5, 8, 1], [5], [5]], [[5, 8, 1], [6], [5]]
    assert dipr_engine.compare_interrupted(Path(), 1.0) == {
        "prompts": 3, "changed_when_interrupted": {STOCK: [0.125], SPARSE: [1.9]}, "unlike_stock": [0.125],
    }  # fmt: skip
    found[SPARSE]["error"] = "none after 1 s"
    assert dipr_engine.compare_answers(Path(), 1.0) == {"error": ["none after 1 s"]}
    assert dipr_engine.compare_interrupted(Path(), 1.0) == {"error": ["none after 1 s"]}


def test_a_profiler_does_not_stay_on():
    class Engine:
        called: ClassVar[list[str]] = []

        def collective_rpc(self, name):
            self.called.append(name)

        def generate(self, *_, **__):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        dipr_engine.kernel_times(Engine(), [[1]], 4)
    assert Engine.called == ["watch", "stop_watching"]


CHILD = """
import json, sys, time
from pathlib import Path
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
Path(given["--out"]).write_text(json.dumps({"part": given["--part"], "backend": given["--backend"]}))
if given["--part"] == "fails":
    sys.exit(3)
if given["--part"] == "waits":
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_part_that_fails_or_takes_too_long_leaves_what_it_found(tmp_path, monkeypatch):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    monkeypatch.setattr(sys, "argv", ["bench"])
    found = {
        part: dipr_process.in_own_process(str(script), part, SPARSE, tmp_path, timeout_s)
        for part, timeout_s in (("ends", 60.0), ("fails", 60.0), ("waits", 3.0))
    }
    assert found["ends"] == {"part": "ends", "backend": SPARSE}
    assert found["fails"] == {"part": "fails", "backend": SPARSE, "error": "exit status 3"}
    assert found["waits"]["error"] == "exit status none after 3 s"


@pytest.mark.parametrize(("found", "status"), [({}, 0), ({"error": "no"}, 1)])
@pytest.mark.parametrize("failed", [[], ["dipr: no"]])
def test_the_exit_status_says_whether_all_went_well(monkeypatch, tmp_path, capsys, found, status, failed):
    monkeypatch.setattr(dipr_engine, "compare_answers", lambda known, timeout_s: found)
    monkeypatch.setattr(dipr_engine, "compare_interrupted", lambda known, timeout_s: {})
    monkeypatch.setattr(dipr_engine, "compare_speed", lambda options, known: ([], failed))
    options = argparse.Namespace(only=None, timeout=1.0, json=tmp_path / "found.json")
    assert dipr_engine.report(options) == (1 if failed else status)
    assert json.loads(options.json.read_text())["check"] == found
    assert all(f"FAILED: {line}" in capsys.readouterr().out for line in failed)


def test_the_columns_of_the_measured_times_are_those_that_are_written(tmp_path):
    folder = Path(dipr_engine.__file__).parent
    times, kernels = folder / "dipr_engine.csv", folder / "dipr_engine_kernels.csv"
    missing = tmp_path / "missing" / "file"
    dipr_engine.check_files(argparse.Namespace(csv=times, kernels=kernels, json=None))
    for wrong, said in [
        ({"kernels": times}, "have 'commit'"), ({"csv": kernels}, "have 'time'"), ({"kernels": missing}, "mkdir"),
        ({"csv": missing}, "mkdir"), ({"json": missing}, "mkdir"),
        ({"csv": tmp_path / "new", "kernels": tmp_path / "new"}, "cannot be both"),
    ]:  # fmt: skip
        with pytest.raises(RelationalError, match=said):
            dipr_engine.check_files(argparse.Namespace(**{"csv": None, "kernels": None, "json": None, **wrong}))


def test_files_are_checked_before_anything_starts(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["dipr_engine.py", "--csv", str(tmp_path / "missing" / "times.csv")])
    monkeypatch.setattr(dipr_engine, "report", lambda options: pytest.fail("started"))
    with pytest.raises(SystemExit) as stopped:
        dipr_engine.main()
    assert stopped.value.code == 2 and "mkdir" in capsys.readouterr().err


def test_times_of_one_run_are_drawn(monkeypatch, tmp_path):
    """Of the runs with most cases the last, default settings only; FlashAttention need not be there."""
    drawn = {}
    monkeypatch.setattr(dipr_plots, "draw_bars", lambda panels, *_, title, **__: drawn.update(panels, title=title))

    def line(commit, backend, context, ms, settings="", topics=12.0, machine="GPU"):
        return {
            "commit": commit, "machine": machine, "layers": 2, "logit_std": 3.0, "topics": topics,
            "compilation_mode": 3, "tokens": 128, "backend": backend, "settings": settings, "context": context,
            "batch": 1, "ms_a_token": ms,
        }  # fmt: skip

    lines = [
        line("a", STOCK, 1024, 8.0), line("a", STOCK, 2048, 8.0), line("b", STOCK, 1024, 6.0),
        line("b", STOCK, 2048, 9.0), line("b", SPARSE, 1024, 4.0, "{}"), line("b", SPARSE, 1024, 1.0, '{"alpha": 1}'),
        line("c", STOCK, 1024, 1.0),
    ]  # fmt: skip
    dipr_plots.draw_engine(pd.DataFrame(lines), tmp_path / "plot.svg")
    times, labels = drawn["1K x 1"]
    assert (dict(times), labels) == ({SPARSE: 4.0, STOCK: 6.0}, ["1.50x", "1.00x"])
    assert drawn["2K x 1"][1] == ["", "1.00x"] and drawn["title"] == "GPU, 2 layers, 12 topics"
    alone = [line(None, SPARSE, 1024, 4.0, "{}", topics=float("nan"))]
    dipr_plots.draw_engine(pd.DataFrame(alone), tmp_path / "plot.svg")
    assert drawn["1K x 1"][1] == [""] and drawn["title"] == "GPU, 2 layers"


def test_texts_go_from_topic_to_topic():
    tokens = dipr_random_model.random_tokens(1, 20_000, 1003, topics=12)
    assert len(tokens) == 20_000 and tokens == dipr_random_model.random_tokens(1, 20_000, 1003, topics=12)
    assert min(tokens) >= 0 and max(tokens) < 1003
    topics = [token % 12 for token in tokens]
    changes = sum(left != right for left, right in pairwise(topics))
    assert 40 < len(tokens) / changes < 100  # STRETCH is 64; the next topic may be the same
    assert min(Counter(topics).values()) > 500


class Attention(torch.nn.Module):
    def __init__(self, hidden, rows):
        super().__init__()
        self.qkv_proj = torch.nn.Linear(hidden, rows)
        self.norm = torch.nn.LayerNorm(hidden)


def test_weights_make_tokens_of_a_topic_alike_and_queries_find_their_own_tokens():
    config = argparse.Namespace(num_key_value_heads=2, num_attention_heads=4, hidden_size=256)
    model = torch.nn.ModuleDict(
        {"embed_tokens": torch.nn.Embedding(1200, 256), "layer": Attention(256, 4 * 64 + 4 * 64)}
    )
    assert dipr_random_model.draw_weights(model, config, 3.0, topics=12) == 1
    embedded = model["embed_tokens"].weight.detach()
    alike = torch.corrcoef(embedded[:240])
    same = torch.arange(240)[:, None] % 12 == torch.arange(240) % 12
    same.fill_diagonal_(False)
    assert alike[same].mean() == pytest.approx(dipr_random_model.ALIKE, abs=0.02)
    assert alike[~same & ~torch.eye(240, dtype=torch.bool)].abs().mean() < 0.1
    projected = model["layer"].qkv_proj(embedded[:240]).detach()
    query, key = projected[:, :64], projected[:, 256 : 256 + 64]  # of the first heads
    products = query @ key.T * 64**-0.5
    others = products[~same & ~torch.eye(240, dtype=torch.bool)]
    assert others.std() == pytest.approx(3.0, rel=0.25)
    assert products[same].mean() > others.mean() + 3 * others.std()
    assert model["layer"].norm.weight.eq(1).all() and model["layer"].qkv_proj.bias.eq(0).all()
