"""Every command of ours that a page shows exists, with every option that it is shown with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_pages import PAGES, blocks, inline_code, name

from vllm_relational.cli.app import commands

COMMANDS = commands()
GROUPS = {words.split()[0] for words in COMMANDS if " " in words}
OPTIONS = {
    command: {flag for parameter in found.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    for command, found in COMMANDS.items()
}
ALL_OPTIONS = set().union(*OPTIONS.values())
# Options of other programs that pages name outside of a command line.
FOREIGN = {
    "vllm serve": {
        "--additional-config",
        "--api-server-count",
        "--attention-backend",
        "--disable-log-stats",
        "--enforce-eager",
        "--headless",
        "--kv-cache-dtype",
        "--max-model-len",
        "--reasoning-parser",
        "--scheduler-cls",
        "--served-model-name",
        "--shutdown-timeout",
        "--worker-cls",
    },
    "our scripts": {"--apply", "--check", "--csv", "--demands", "--fast", "--parts", "--repeat", "--revert"},
}
FLAG = re.compile(r"(?<![\w-])(?:--[a-zA-Z][\w-]*|-[a-zA-Z](?!\w))")


def command_lines(text: str) -> Iterator[list[str]]:
    """The words behind ``vllm-relational`` in blocks of shell, lines joined, comments left out."""
    for block in blocks(text, "bash", "sh", "console"):
        for line in joined(block.text):
            if "vllm-relational " in line:
                yield shlex.split(line.partition("vllm-relational ")[2], comments=True)


def joined(text: str) -> Iterator[str]:
    """Lines of shell: a backslash or an open quote goes on with the next line."""
    pending = ""
    for line in text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
        elif is_open(pending):
            pending += "\n"
        else:
            yield pending
            pending = ""


def is_open(text: str) -> bool:
    """Whether a quote has begun that does not end."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return True
    return False


def unknown(words: list[str]) -> list[str]:
    """What a command line of ours names that does not exist."""
    command, *rest = words
    if command in GROUPS and rest:
        command, *rest = f"{command} {rest[0]}", *rest[1:]
    if command in GROUPS:
        return []
    if command not in OPTIONS:
        return [] if command.isupper() or command.startswith("-") else [command]
    if COMMANDS[command].context_settings.get("ignore_unknown_options"):  # what is not ours is vLLM's
        return []
    flags = [word.partition("=")[0] for word in rest if FLAG.match(word)]
    return [f"{command} {flag}" for flag in flags if flag not in OPTIONS[command]]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_in_blocks_exist(path):
    found = [bad for words in command_lines(path.read_text(encoding="utf-8")) if words for bad in unknown(words)]
    assert found == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_and_options_in_prose_exist(path: Path):
    known = ALL_OPTIONS.union(*FOREIGN.values())
    for text in inline_code(path.read_text(encoding="utf-8")):
        if text.startswith("vllm-relational "):
            assert unknown(text.split()[1:]) == [], text
        elif text.startswith("-"):
            assert set(FLAG.findall(text)) <= known, text


def test_unknown_commands_and_options_are_found():
    assert unknown(["run", "t.csv", "--prompt", "a", "-m", "M", "--gone"]) == ["run --gone"]
    assert unknown(["gone", "t.csv"]) == ["gone"]
    assert unknown(["context", "gone"]) == ["context gone"]
    assert unknown(["context", "rm", "book", "--gone"]) == ["context rm --gone"]
    assert unknown(["serve", "M", "--max-model-len", "4096"]) == []


def test_command_lines_go_on_after_backslashes_and_in_quotes():
    text = '```bash\nvllm-relational run t.csv \\\n  --prompt "a\nb" # --gone\n```\n'
    assert list(command_lines(text)) == [["run", "t.csv", "--prompt", "a\nb"]]
