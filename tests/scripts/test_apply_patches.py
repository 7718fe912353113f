"""Patches to vLLM: exact, all or none, reversible, and agreeing with their ledger."""

from __future__ import annotations

import difflib
import errno
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
PATCHES = ROOT / "patches"
REGISTRY = "vllm/v1/attention/backends/registry.py"
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

spec = importlib.util.spec_from_file_location("apply_patches", ROOT / "scripts" / "apply_patches.py")
assert spec is not None and spec.loader is not None
script = importlib.util.module_from_spec(spec)
sys.modules["apply_patches"] = script
spec.loader.exec_module(script)

LINES = "".join(f"line_{number} = {number}\n" for number in range(40))
OLD = {"vllm/one.py": LINES, "vllm/sub/two.py": "def f():\n    return 1\n"}
MIDDLE = {**OLD, "vllm/one.py": LINES.replace("line_3 =", "# three\nline_3 =").replace("line_30 = 30\n", "")}
NEW = {**MIDDLE, "vllm/sub/two.py": "def f():\n    # why\n    return 2\n"}
NEW["vllm/one.py"] = NEW["vllm/one.py"].replace("line_10 =", "line_ten =")


def diff(old: dict[str, str], new: dict[str, str]) -> str:
    pieces: list[str] = []
    for path in old:
        before, after = old[path].splitlines(True), new[path].splitlines(True)
        pieces.extend(difflib.unified_diff(before, after, f"a/{path}", f"b/{path}"))
    return "".join(pieces)


def write(folder: Path, texts: dict[str, str]) -> None:
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {path: (folder / path).read_text() for path in OLD}


@pytest.fixture
def patches(tmp_path):
    """Two patches, both to the first file, and their ledger."""
    folder = tmp_path / "patches"
    write(folder, {"1.patch": diff(OLD, MIDDLE), "2.patch": diff(MIDDLE, NEW)})
    sums = {p: {"before": script.digest(OLD[p].encode()), "after": script.digest(NEW[p].encode())} for p in OLD}
    ledger = {"vllm": "9.9.9", "patches": ["1.patch", "2.patch"], "files": sums}
    (folder / "ledger.json").write_text(json.dumps(ledger))
    return folder


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    write(folder, {**OLD, "vllm/_version.py": "__version__ = version = '9.9.9+cu999'\n"})
    return folder


def leftovers(site: Path) -> list[Path]:
    return [path for path in site.rglob("*") if "relational" in path.name]


def test_apply_and_revert_are_exact_and_may_be_repeated(site, patches):
    assert "as released" in script.run("check", site, patches)
    for _ in range(2):
        script.run("apply", site, patches)
        assert read(site) == NEW
    assert "as patched" in script.run("check", site, patches)
    for _ in range(2):
        script.run("revert", site, patches)
        assert read(site) == OLD
    assert leftovers(site) == []


@pytest.mark.parametrize("action", ["apply", "revert"])
def test_an_interrupted_run_is_finished(site, patches, action):
    write(site, {"vllm/one.py": NEW["vllm/one.py"]})
    with pytest.raises(script.PatchError):
        script.run("check", site, patches)

    script.run(action, site, patches)

    assert read(site) == (NEW if action == "apply" else OLD)


@pytest.mark.parametrize("action", ["check", "apply", "revert"])
def test_foreign_edits_are_refused_and_nothing_is_touched(site, patches, action):
    edited = {**OLD, "vllm/sub/two.py": OLD["vllm/sub/two.py"] + "# mine\n"}
    write(site, edited)

    with pytest.raises(script.PatchError, match=r"two\.py.*edited by somebody else"):
        script.run(action, site, patches)

    assert read(site) == edited


@pytest.mark.parametrize("fails_at", [0, 1])
def test_a_failure_between_two_files_puts_the_first_back(site, patches, monkeypatch, fails_at):
    replace, calls = script.os.replace, []

    def failing(source, target):
        if source.name.endswith("-new"):
            calls.append(target)
            if len(calls) == fails_at + 1:
                raise OSError("the disk is full")
        replace(source, target)

    monkeypatch.setattr(script.os, "replace", failing)
    with pytest.raises(script.PatchError, match=r"disk is full\. Everything is as it was"):
        script.run("apply", site, patches)

    assert read(site) == OLD
    assert leftovers(site) == []


def told(action, site, patches, monkeypatch, capsys):
    """What the command line says when it refuses."""
    monkeypatch.setattr(script.run, "__defaults__", (patches,))
    assert script.main([f"--{action}", "--site", str(site)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize("action", ["check", "apply", "revert"])
def test_a_missing_file_is_named(site, patches, monkeypatch, capsys, action):
    (site / "vllm/sub/two.py").unlink()
    err = told(action, site, patches, monkeypatch, capsys)
    assert "two.py: not there" in err and "Traceback" not in err
    if action != "check":
        assert err.count("\n") == 1 and str(site) in err and "install vLLM 9.9.9 anew" in err
    assert (site / "vllm/one.py").read_text() == OLD["vllm/one.py"]


def test_a_read_only_folder_is_named_before_anything_is_done(site, patches, monkeypatch, capsys):
    sub = site / "vllm/sub"
    monkeypatch.setattr(script.os, "access", lambda path, mode: path != sub)  # root may write where others may not
    err = told("apply", site, patches, monkeypatch, capsys)
    assert err.count("\n") == 1 and f"{sub} is read-only. Nothing was changed" in err and "user who installed" in err
    assert read(site) == OLD


def test_a_disk_that_refuses_is_named_and_all_is_put_back(site, patches, monkeypatch, capsys):
    def refuse(file, data, like):
        raise OSError(errno.EROFS, "Read-only file system", str(file))

    monkeypatch.setattr(script, "_write", refuse)
    err = told("apply", site, patches, monkeypatch, capsys)
    assert err.count("\n") == 1 and "Read-only file system. Everything is as it was" in err and str(site) in err
    assert read(site) == OLD and leftovers(site) == []


def test_another_release_is_refused_by_both_numbers(site, patches):
    write(site, {"vllm/_version.py": "__version__ = version = '9.9.10'\n"})

    with pytest.raises(script.PatchError, match=r"for vLLM 9\.9\.9, and .* holds vLLM 9\.9\.10"):
        script.run("apply", site, patches)


def test_a_text_that_does_not_compile_is_refused(site, patches):
    broken = {**NEW, "vllm/one.py": NEW["vllm/one.py"].replace("line_ten =", "line ten =")}
    write(patches, {"2.patch": diff(MIDDLE, broken)})
    ledger = json.loads((patches / "ledger.json").read_text())
    ledger["files"]["vllm/one.py"]["after"] = script.digest(broken["vllm/one.py"].encode())
    (patches / "ledger.json").write_text(json.dumps(ledger))

    with pytest.raises(script.PatchError, match="would not compile"):
        script.run("apply", site, patches)

    assert read(site) == OLD


def test_patches_that_disagree_with_the_ledger_are_refused(site, patches):
    write(patches, {"2.patch": diff(MIDDLE, {**NEW, "vllm/sub/two.py": "def f():\n    return 3\n"})})

    with pytest.raises(script.PatchError, match="disagree"):
        script.run("apply", site, patches)

    assert read(site) == OLD


def test_hard_linked_package_caches_stay_as_they_were(site, patches, tmp_path):
    cached = tmp_path / "cached.py"
    cached.hardlink_to(site / "vllm/one.py")

    script.run("apply", site, patches)

    assert cached.read_text() == OLD["vllm/one.py"]


def test_a_wrong_folder_is_named(tmp_path, capsys):
    assert script.main(["--check", "--site", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


SOURCES = st.lists(st.sampled_from(["a\n", "b\n", "-c\n", "+d\n", "--- e\n", "@@ -1 +1 @@\n"]), max_size=30)


@given(old=SOURCES, new=SOURCES)
def test_any_difference_can_be_applied_and_undone(old, new):
    hunks = script.parse("".join(difflib.unified_diff(old, new, "a/x.py", "b/x.py"))).get("x.py", [])
    if any(not lines for _, before, after in hunks for lines in (before, after)):
        return  # an empty side: files are neither made nor emptied

    assert script.apply_hunks("".join(old), hunks, "x.py") == "".join(new)
    assert script.apply_hunks("".join(new), script.reverse(hunks), "x.py") == "".join(old)


@given(old=SOURCES, new=SOURCES, other=SOURCES)
def test_a_text_that_differs_inside_a_hunk_is_refused(old, new, other):
    hunks = script.parse("".join(difflib.unified_diff(old, new, "a/x.py", "b/x.py"))).get("x.py", [])
    if all(other[start : start + len(before)] == before for start, before, _ in hunks):
        return
    with pytest.raises(script.PatchError, match=r"x\.py, line"):
        script.apply_hunks("".join(other), hunks, "x.py")


def test_ledger_and_folder_agree():
    ledger = script.read_ledger()
    readme = (PATCHES / "README.md").read_text()

    assert ledger["patches"] == sorted(path.name for path in PATCHES.glob("*.patch"))
    touched = {path for name in ledger["patches"] for path in script.parse((PATCHES / name).read_text())}
    assert set(ledger["files"]) == touched
    rows = [line.split("|")[1:-1] for line in readme.splitlines() if line.startswith("| `")]
    assert [row[0].strip(" `") for row in rows] == ledger["patches"]
    assert all(cell.strip() for row in rows for cell in row), "every patch says why, where upstream, and until when"
    assert f"vLLM {ledger['vllm']}" in readme


@pytest.fixture
def installed(tmp_path):
    """A copy of the files of the installed vLLM that the patches touch, as released."""
    site = tmp_path / "site"
    for path in ["vllm/_version.py", *script.read_ledger()["files"]]:
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(script.find_site() / path, site / path)
    script.run("revert", site)
    return site


@needs_vllm
def test_the_patches_apply_to_the_installed_vllm_and_can_be_taken_back(installed):
    before = {path: (installed / path).read_bytes() for path in script.read_ledger()["files"]}

    script.run("apply", installed)
    assert "as patched" in script.run("check", installed)
    assert all((installed / path).read_bytes() != data for path, data in before.items())

    script.run("revert", installed)
    assert {path: (installed / path).read_bytes() for path in before} == before


def in_new_process(registry: Path, statement: str) -> subprocess.CompletedProcess:
    """Run a statement where ``registry`` stands for vLLM's module of that name."""
    name = "vllm.v1.attention.backends.registry"
    prelude = f"""
import importlib.util, pickle, sys
spec = importlib.util.spec_from_file_location({name!r}, {str(registry)!r})
module = importlib.util.module_from_spec(spec)
sys.modules[{name!r}] = module
spec.loader.exec_module(module)
Backends = module.AttentionBackendEnum
"""
    return subprocess.run([sys.executable, "-c", prelude + statement], capture_output=True, text=True)


@needs_vllm
@pytest.mark.vllm
def test_0001_a_new_backend_name_reaches_another_process(installed):
    dump = """
module.register_backend("NEW_ONE", "some.where.Backend")
print(pickle.dumps([Backends["NEW_ONE"], Backends.FLASH_ATTN, Backends.CUSTOM]).hex())
"""
    load = """
new, flash, custom = pickle.loads(bytes.fromhex(DATA))
print(new.name, new.get_path(), flash is Backends.FLASH_ATTN, custom is Backends.CUSTOM, Backends["NEW_ONE"] is new)
"""
    registry = installed / REGISTRY
    found = {}
    for action in ("revert", "apply"):
        script.run(action, installed)
        data = in_new_process(registry, dump).stdout.split()[-1]
        found[action] = in_new_process(registry, f"DATA = {data!r}\n{load}")

    # The second is how Python 3.11.2 says it, which pickles members by name.
    failed = re.search("is not a valid AttentionBackendEnum|AttributeError: NEW_ONE", found["revert"].stderr)
    assert failed, "vLLM mended it: drop the patch"
    assert found["apply"].stdout.split()[-5:] == ["NEW_ONE", "some.where.Backend", "True", "True", "True"]
