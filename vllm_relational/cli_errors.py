"""How a command ends: one line and an exit status, whatever happened.

0 every row answered, 1 some rows failed, 2 could not run, 130 interrupted. 1 is given by a command alone: an
unexpected exception, a wrong option and an output that could not be delivered are 2.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

from vllm_relational.records import RelationalError
from vllm_relational.terminal import flush_streams, give_up_output, prepare_streams, tell

OK, SOME_ROWS_FAILED, COULD_NOT_RUN, INTERRUPTED = 0, 1, 2, 130
TRACEBACK = "VLLM_RELATIONAL_TRACEBACK"  # set: unexpected errors show where they came from
_MESSAGE_CHARS = 500


class CommandEnded(SystemExit):
    """A command ran to its end; ``code`` is its exit status."""


def guarded(function: Callable[..., int]) -> Callable[..., None]:
    """``function`` as a command: its errors become one line, its return value the exit status."""

    @functools.wraps(function)
    def wrapped(**arguments: Any) -> None:
        with _warnings_told():
            status = _status(function, arguments)
        raise CommandEnded(status)

    return wrapped


@contextmanager
def _warnings_told() -> Iterator[None]:
    """Within the block a warning, whoever gives it, is a line for the person at the terminal: no path, no source."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        tell(f"warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _status(function: Callable[..., int], arguments: Mapping[str, Any]) -> int:
    try:
        return function(**arguments)
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away: nothing left to say
        give_up_output()
    except RelationalError as error:  # errors of SQL show the place on further lines
        tell(f"error: {(str(error).splitlines() or ['no reason given'])[0]}")
    except OSError as error:
        tell(f"error: {error}")
    except Exception as error:
        _tell_unexpected(error, bool(arguments.get("verbose")))
    return COULD_NOT_RUN


def _tell_unexpected(error: Exception, verbose: bool) -> None:
    """A defect of ours: what it was in one line, and where on request."""
    if verbose or os.environ.get(TRACEBACK):
        tell("".join(traceback.format_exception(error)))
    what = " ".join(f"{type(error).__name__}: {error}".split())[:_MESSAGE_CHARS]
    tell(f"error: unexpected {what}; this is a defect of vllm-relational: {TRACEBACK}=1 shows where")


def run_program(app: Callable[[], Any]) -> int:
    """Run the program on ``sys.argv`` and return its exit status; standard output has been delivered, or it is 2."""
    prepare_streams()
    status = _ended(app)
    if flush_streams():
        return status
    tell("error: standard output could not take everything: name a file with -o")
    return COULD_NOT_RUN


def _ended(app: Callable[[], Any]) -> int:
    try:
        app()
    except CommandEnded as ended:
        return int(str(ended.code))
    except SystemExit as ended:  # help, or options that cannot be read; they may say 1
        return OK if ended.code in (None, OK) else COULD_NOT_RUN
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        _tell_unexpected(error, verbose=False)
        return COULD_NOT_RUN
    return OK


def check_standard_output(output: object = None) -> None:
    """Before anything is asked: is there a standard output to write to? output: the file that is written instead."""
    if output is None and (sys.stdout is None or getattr(sys.stdout, "closed", False)):
        raise RelationalError("standard output is closed: name a file for the answers with -o")
