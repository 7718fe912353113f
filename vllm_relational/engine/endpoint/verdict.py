"""Whose fault a failed request is: the row's, which fails alone, or the server's, which ends the job.

A request fails after its retries. It stays pending until one of these decides, in this order:

====================================================================================  =========  ==============
what is known of a pending failure                                                    the row's  the server's
====================================================================================  =========  ==============
a request that was sent later has been answered                                       yes
the rows are at an end, the refusal is of the row's kind (HTTP 400, 413, 422), and
some row of this job was answered                                                     yes
``max_pending`` failures are pending, or the rows are at an end, and a trial
request is answered                                                                   yes
the same, and the trial request fails                                                            yes
====================================================================================  =========  ==============

The trial repeats the row that was answered last; where none was, it is a tiny question under the same parameters. An
answer that the model gave and that is of no use (empty, cut off, refused) is an answer here: the server works.

So a server that refuses everything, from the start or from some moment on, gets at most ``2 * concurrency`` requests
after that moment, the trial among them; further attempts and what is asked under other terms (``endpoint_question``)
are not counted. A request holds one of ``concurrency`` places until its answer was taken or its failure was decided:

- Those in flight at that moment may fail and be decided, as an answer to a request that was sent after them comes from
  before that moment. At least one of the places holds such an answer: ``concurrency - 1``.
- Those that follow in the same places were sent after that moment: no answer decides them, so each keeps its place, and
  they are ``concurrency`` at most.
- One trial.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vllm_relational.engine.endpoint.failures import RequestError
from vllm_relational.records import Prompt


def max_pending(concurrency: int) -> int:
    """Failures that may be pending before the trial; each holds a place meanwhile, so that they are few."""
    return max(min(concurrency, 2), concurrency // 4)


@dataclass(frozen=True)
class Failed:
    """A row whose request failed."""

    prompt: Prompt
    failure: RequestError


class ServerFailedError(Exception):
    """No further row would fare better. ``failure``: what one of them, or the trial, failed with."""

    def __init__(self, failure: RequestError) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Verdict:
    """Decides for one job. Not for several threads.

    ``answered`` and ``failed`` return the rows that were found to have failed alone, of those pending.
    """

    def __init__(self, concurrency: int) -> None:
        self.num_answers = 0
        self.known_good: Prompt | None = None
        self._max_pending = max_pending(concurrency)
        self._pending: list[Failed] = []
        self._last_sent = float("-inf")

    @property
    def num_pending(self) -> int:
        """Failures of which it is not known yet whose they are."""
        return len(self._pending)

    @property
    def is_due(self) -> bool:
        """Whether ``judge`` must be called before another row is sent."""
        return len(self._pending) >= self._max_pending

    def answered(self, prompt: Prompt, sent_at: float) -> list[Failed]:
        """A row was answered, by a request sent at that time."""
        self.num_answers += 1
        self.known_good = prompt
        return self._release(sent_at)

    def failed(self, failed: Failed) -> list[Failed]:
        """A row's request failed."""
        self._pending.append(failed)
        return self._release(self._last_sent)

    def judge(self, trial: Callable[[], float]) -> list[Failed]:
        """Decide what is pending. trial: asks once more, returns when that was sent, or raises ``RequestError``."""
        if not self._pending:
            return []
        if not self.is_due and self.num_answers and all(failed.failure.may_be_the_rows for failed in self._pending):
            return self._release(float("inf"))
        failure: RequestError | None = None
        try:
            sent_at = trial()
        except RequestError as error:
            failure = self._pending[-1].failure if error.is_like(self._pending[-1].failure) else error
        if failure is not None:
            raise ServerFailedError(failure)
        return self._release(sent_at)

    def _release(self, sent_at: float) -> list[Failed]:
        """Those whose last attempt began before an answered request was sent."""
        if sent_at < float("inf"):
            self._last_sent = max(self._last_sent, sent_at)
        alone = [failed for failed in self._pending if failed.failure.sent_at < sent_at]
        self._pending = [failed for failed in self._pending if failed.failure.sent_at >= sent_at]
        return alone
