"""What a server may say, against what is made of it: every kind of bad reply over sockets, and mutations of replies.

    python scripts/robustness/fuzz_replies.py                          # all kinds, then 100,000 mutations
    python scripts/robustness/fuzz_replies.py --cases 1000 --seed 7 --no-sockets

Each kind (``tests/bad_replies.py``) is the reply to one row of a job whose other rows are answered: that row fails with
its reason, the others are answered. Mutations are read in this process, without sockets: whatever the reply, there is
an answer or a reason, in bounded time; the reason is short, printable and without the key. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import random
import re
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from bad_replies import ANSWERED, KINDS, SECRET
from fake_server import FakeServer, Reply, chat

from vllm_relational.engine.endpoint import EndpointEngine
from vllm_relational.engine.endpoint.connection import (
    MAX_RETRY_AFTER_S,
    Address,
    EndpointConnection,
    decoded,
    retry_after_s,
)
from vllm_relational.engine.endpoint.failures import RequestError
from vllm_relational.engine.endpoint.models import ExpectedModel, block_size_in, choose_card, model_info, read_cards
from vllm_relational.engine.endpoint.question import EndpointQuestion, Learned
from vllm_relational.engine.endpoint.secrets import ApiKey
from vllm_relational.engine.endpoint.transport import unpacked
from vllm_relational.records import Choice, Completion, FreeText, IntegerRange, JsonSchema, Prompt, RelationalError
from vllm_relational.results.outcome import checked
from vllm_relational.results.parse import parser
from vllm_relational.terminal import printable

MAX_REASON, MAX_CASE_S = 1000, 1.0
DECISIONS = [Choice(("yes", "no")), IntegerRange(1, 5), FreeText(64), JsonSchema({"type": "object"})]
DIALECTS = ["vllm", "response_format", "words"]
ADDRESS = Address("http://127.0.0.1:9/v1", ApiKey(SECRET, "the api_key argument"), 1.0, 0, 0.0)
CARDS = [{"id": "tiny", "root": "/models/tiny", "max_model_len": 2048, "owned_by": "vllm"}, {"id": "other"}]
REPLIES: list[Any] = [
    {**chat("yes")[1], "model": "tiny", "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}},
    {
        **chat('{"answer": 3}', "length")[1],
        "model": "tiny-2024-08-06",
        "usage": {"prompt_tokens_details": {"cached_tokens": 4}},
    },
    {
        "choices": [
            {"index": 0, "message": {"content": [{"type": "text", "text": "<think>x</think>no"}], "refusal": None}}
        ]
    },
    {
        "choices": [
            {"message": {"content": None, "reasoning_content": f"hm {SECRET}"}, "finish_reason": "content_filter"}
        ]
    },
    {"error": {"message": f"Incorrect API key provided: {SECRET}", "param": "max_tokens", "code": 400, "type": "x"}},
    {"detail": [{"loc": ["body", "messages"], "msg": "field required"}]},
    {"object": "list", "data": CARDS},
]
PAGE = '# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{block_size="16",engine="0"} 1.0\n'
HEADERS = ["5", "Fri, 31 Dec 2100 23:59:59 GMT", "-1", "1e5", "nan", "Mon, 01 Jan 99999 00:00:00 +9999"]
HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 10**30, 1e308, float("nan"), float("inf"), "", " ", "yes", "no", "3", "\x1b[2J\x07",
    "\ud800", "\u202e", "a" * 5000, SECRET, SECRET[:12], SECRET * 50, "{", '{"answer": "no"}', "[" * 3000,
    "<think>", "</think>", "tiny", "other", "length", "stop", "content_filter", [], {}, [[]], [None], {"text": "yes"},
    {"error": "x"}, {"": {}},
]  # fmt: skip


# -------------------------------------------------------------------------------------------------------- mutation
def places(document: Any) -> list[tuple[Any, Any]]:
    """Every container of the document with every key of it."""
    keys = document.keys() if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    found = [(document, key) for key in keys]
    return found + [place for container, key in list(found) for place in places(container[key])]


def mutated(document: Any, draw: random.Random) -> Any:
    """The document with some of its parts replaced, removed, repeated, wrapped or moved."""
    document = copy.deepcopy(document)
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
        if not (found := places(document)):
            break
        container, key = draw.choice(found)
        match draw.randrange(6):
            case 0:
                del container[key]
            case 1:
                container[key] = [container[key]] * draw.choice([1, 2, 50])
            case 2:
                container[key] = nested(container[key], draw)
            case 3:
                other, name = draw.choice(found)
                container[key] = copy.deepcopy(other.get(name) if isinstance(other, dict) else container[key])
            case _:
                container[key] = copy.deepcopy(draw.choice(HOSTILE))
    return document


def nested(value: Any, draw: random.Random) -> Any:
    for _ in range(draw.choice([1, 2, 3, 400])):
        value = {draw.choice(["error", "message", "detail", "a"]): value}
    return value


def damaged(raw: bytes, draw: random.Random) -> bytes:
    """Bytes cut, doubled, flipped or put in."""
    pieces = [
        b"",
        b"\xff",
        b"\x00",
        b"[" * 20_000,
        b'{"a":' * 5_000,
        b"9" * 6000,
        b"\xef\xbb\xbf",
        b"NaN",
        b"\\ud800",
        b"}",
    ]
    for _ in range(draw.choice([1, 1, 2, 5])):
        start, end = sorted(draw.choices(range(len(raw) + 1), k=2))
        raw = raw[:start] + draw.choice([draw.choice(pieces), raw[start:end] * 2, draw.randbytes(3)]) + raw[end:]
    return raw


def body(draw: random.Random) -> bytes:
    try:
        raw = json.dumps(mutated(draw.choice(REPLIES[: draw.choice([2, 4, len(REPLIES)])]), draw)).encode()
    except RecursionError:
        raw = b"[" * 100_000
    return damaged(raw, draw) if draw.random() < 0.2 else raw


# --------------------------------------------------------------------------------------------------------- reading
class Reader:
    """Reads replies as a job does."""

    def __init__(self) -> None:
        self.connection = EndpointConnection(ADDRESS)
        models = [ExpectedModel("tiny", CARDS), ExpectedModel("tiny", None)]
        self.questions = [
            (EndpointQuestion(self.connection, model, answer_format, dialect, Learned()), answer_format, dialect)
            for model in models
            for answer_format in DECISIONS
            for dialect in DIALECTS
        ]

    def case(self, draw: random.Random) -> str:
        """Draw one reply, read it, and check what comes of it: ``answer``, or the kind of reason."""
        raw = body(draw)
        status = draw.choice([*[200] * 12, 400, 401, 422, 429, 500])
        question, answer_format, dialect = draw.choice(self.questions)
        try:
            if draw.random() < 0.05:
                packed = gzip.compress(raw)
                raw = unpacked(damaged(packed, draw) if draw.random() < 0.5 else packed, "gzip", 2**20)
            reply = decoded(raw)
            if status != 200:
                raise self.connection.refusal(status, reply, {"retry-after": draw.choice(HEADERS)})
            completion = question._read(7, reply, dialect)
        except RequestError as failure:
            completion = Completion(7, None, str(failure))
        self._check_lists(raw, draw)
        return _check(checked(completion, parser(answer_format)))

    def _check_lists(self, raw: bytes, draw: random.Random) -> None:
        """What else a server is asked for."""
        seconds = retry_after_s({"retry-after": damaged(draw.choice(HEADERS).encode(), draw).decode("latin-1")})
        assert seconds is None or seconds > 0, seconds
        size = block_size_in(damaged(PAGE.encode() * draw.choice([1, 50]), draw).decode("utf-8", "replace"))
        assert size is None or 0 < size < 10**7, size
        try:
            info = model_info(
                choose_card(read_cards(decoded(raw), "the server"), draw.choice([None, "tiny"]), "s"), None
            )
            assert info.model and (info.max_model_len is None or 0 < info.max_model_len < 2**31)
        except (RequestError, RelationalError) as error:
            assert printable(str(error)) == str(error), error


def _check(completion: Completion) -> str:
    counts = (completion.prompt_tokens, completion.output_tokens, completion.cached_tokens)
    assert all(count is None or (type(count) is int and 0 <= count <= 10**9) for count in counts), counts
    assert (completion.text is None) != (completion.error is None), completion
    if completion.text is not None:
        completion.text.encode("utf-8")
        return "answer"
    reason = completion.error or ""
    assert printable(reason) == reason and 0 < len(reason) <= MAX_REASON, reason
    if not reason.startswith("unusable answer"):  # which quotes the model, not the server
        assert SECRET[:8] not in reason and SECRET[-8:] not in reason, reason
    return re.sub(r"[^a-zA-Z ].*", "", reason.partition(": ")[2])[:40]


def run_mutations(cases: int, seed: int) -> Counter[str]:
    """Read so many replies; the number that came to each end. Case ``i`` is drawn from ``seed`` and ``i`` alone."""
    reader, ends = Reader(), Counter[str]()
    for case in range(cases):
        started = time.thread_time()
        try:
            ends[reader.case(random.Random(f"{seed} {case}"))] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, case {case}: {type(error).__name__}: {error}") from error
        assert time.thread_time() - started < MAX_CASE_S, (
            f"seed {seed}, case {case}: {time.thread_time() - started:.1f} s"
        )
    return ends


# --------------------------------------------------------------------------------------------------------- sockets
def run_kinds(timeout_s: float = 2.5, concurrency: int = 16) -> dict[str, Completion]:
    """Each kind as the reply to one row, a good row after each. Returns what became of each kind's row."""
    names, server = sorted(KINDS), FakeServer()

    def by_row(body: dict[str, Any]) -> Reply:
        found = re.fullmatch(r"row (\d+)", body["messages"][-1]["content"])
        place, is_good = divmod(int(found[1]) if found else 1, 2)
        return chat("yes") if is_good else KINDS[names[place]][0]

    server.reply = by_row
    engine = EndpointEngine(
        f"{server.root}/v1",
        api_key=SECRET,
        concurrency=concurrency,
        timeout_s=timeout_s,
        max_retries=1,
        retry_delay_s=0.001,
    )
    prompts = [Prompt(key, user=f"row {key}") for key in range(2 * len(names))]
    try:
        answers = {answer.key: answer for answer in engine.ask(prompts, DECISIONS[0])}
    finally:
        server.kill()
    lost = [key for key in range(len(prompts)) if key not in answers]
    hurt = [key for key in range(1, len(prompts), 2) if key in answers and answers[key].text != "yes"]
    assert not lost and not hurt, f"rows without an outcome {lost}, good rows that failed {hurt}"
    return {name: answers[2 * place] for place, name in enumerate(names)}


def kind_problem(name: str, completion: Completion) -> str | None:
    """What is wrong with the outcome of a kind; None if it is right."""
    expected, error = KINDS[name][1], completion.error or ""
    if expected == ANSWERED:
        return None if (completion.text, completion.error) == ("yes", None) else f"not answered: {error}"
    if completion.text is not None or not re.search(expected, error):
        return f"expected {expected!r}, found {error or completion.text!r}"
    if len(error) > MAX_REASON or printable(error) != error or SECRET[:8] in error:
        return f"a reason that must not be shown: {error!r}"
    return None


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--cases", type=int, default=100_000)
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--no-sockets", action="store_true")
    options = parse.parse_args()
    problems = []
    if not options.no_sockets:
        outcomes = run_kinds()
        problems = [f"{name}: {found}" for name in KINDS if (found := kind_problem(name, outcomes[name]))]
        print(*problems, sep="\n", end="\n" if problems else "")
        print(f"{len(KINDS)} kinds of replies over sockets: {len(problems)} wrong")
    ends = run_mutations(options.cases, options.seed)
    for end, count in ends.most_common(25):
        print(f"{count:9,}  {end}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{options.cases:,} mutations of replies: no crash; {peak:,} MiB at most; waits up to {MAX_RETRY_AFTER_S:g} s"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
