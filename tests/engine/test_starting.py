"""Engine processes can be started from scripts of every kind, and what is said of a failed start is true."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from vllm_relational.engine import starting
from vllm_relational.engine.starting import import_vllm, start_message, without_unreadable_script

# Spawns a process as vLLM spawns its engine.
SPAWN = """
import multiprocessing, os
from vllm_relational.engine.starting import without_unreadable_script
if __name__ == "__main__":
    before = globals().get("__file__")
    with without_unreadable_script():
        child = multiprocessing.get_context("spawn").Process(target=os.getpid)
        child.start()
    child.join()
    print(child.exitcode, globals().get("__file__") == before)
"""


@pytest.mark.parametrize("way", ["stdin", "dash", "command", "pipe", "file", "module"])
def test_a_process_can_be_spawned_from_every_kind_of_script(tmp_path, way):
    (tmp_path / "script.py").write_text(SPAWN)
    quoted = sys.executable
    commands = {
        "stdin": f"{quoted} < script.py",
        "dash": f"cat script.py | {quoted} -",
        "command": f"{quoted} -c 'exec(open(\"script.py\").read())'",
        "pipe": f"{quoted} <(cat script.py)",
        "file": f"{quoted} script.py",
        "module": f"{quoted} -m script",
    }
    done = subprocess.run(["bash", "-c", commands[way]], capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("0 True\n", "")


def main_script(monkeypatch, path) -> None:
    main = types.ModuleType("__main__")
    main.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "__main__", main)


@pytest.mark.parametrize(
    ("source", "hinted"),
    [
        ("llm.query(df, '{a}')\n", True),
        ("if __name__ == '__main__':\n    llm.query(df, '{a}')\n", False),
        (None, False),
    ],
)
def test_the_guard_is_named_only_to_scripts_without_one(tmp_path, monkeypatch, source, hinted):
    script = tmp_path / "script.py"
    if source is not None:
        script.write_text(source)
    main_script(monkeypatch, script if source is not None else "<stdin>")
    message = start_message("m", RuntimeError("Engine core initialization failed. See root cause above."))
    assert ("if __name__ == '__main__':" in message) == hinted
    assert "guard" not in start_message("m", RuntimeError("out of memory"))


def test_the_name_of_a_script_that_can_be_read_stays(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text("")
    main_script(monkeypatch, script)
    with without_unreadable_script():
        assert sys.modules["__main__"].__file__ == str(script)


def test_no_import_keeps_the_frames_of_the_caller(tmp_path, monkeypatch):
    (tmp_path / "vllm_keeps.py").write_text("import sys\nframe = sys._getframe()\n")
    monkeypatch.syspath_prepend(tmp_path)
    frame = starting._imported("vllm_keeps").frame
    names = set()
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    assert test_no_import_keeps_the_frames_of_the_caller.__name__ not in names


def test_a_failing_import_is_raised_here(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(starting.RelationalError, match="vLLM is not installed: pip install"):
        import_vllm()
