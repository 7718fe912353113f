"""How a command ends: one line and an exit status, whatever happened.

0 every row answered, 1 some rows failed, 2 could not run, 130 interrupted. 1 is given by a command alone: an
unexpected exception, a wrong option and an output that could not be delivered are 2.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from vllm_relational.records import RelationalError
from vllm_relational.terminal import flush_streams, give_up_output, prepare_streams, tell

OK, SOME_ROWS_FAILED, COULD_NOT_RUN, INTERRUPTED = 0, 1, 2, 130
TRACEBACK = "VLLM_RELATIONAL_TRACEBACK"  # set: unexpected errors show where they came from
_MESSAGE_CHARS = 500
_FAILED_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


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


class OneLineErrors(TyperGroup):
    """The commands of a program; options that cannot be read are told in one line, as everything else is."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; by default end the process with its exit status."""
        try:
            status = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except Exception as error:
            told = _usage_error(error) if standalone_mode else None
            if told is None:
                raise
            if told:
                tell(told)
            raise SystemExit(COULD_NOT_RUN) from None
        return sys.exit(status) if standalone_mode else status


def _usage_error(error: Exception) -> str | None:
    """What to say of an error of the options; None for any other. Versions of typer have classes of their own."""
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(getattr(error, "message", ""))  # the help; empty where it was printed when the error was made
    what = " ".join(str(error.format_message()).split()).rstrip(".")
    help_of = f"; {context.command_path} --help shows what there is" if context is not None else ""
    return f"error: {what}{help_of}"


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
        tell(f"error: {_where(error)}")
    except Exception as error:
        _tell_unexpected(error, bool(arguments.get("verbose")))
    return COULD_NOT_RUN


def _where(error: OSError) -> str:
    """Which file cannot be used, and the fix. Failed writes name no file: those to files of ours are told by us."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"cannot use {error.filename}: {reason}: check its folder, the rights, and the room on the disk"
    if error.errno in _FAILED_WRITES:
        give_up_output()
        return f"cannot write to standard output: {reason}: make room, or send it to another place"
    return reason


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
    except OSError as error:
        tell(f"error: {_where(error)}")
        return COULD_NOT_RUN
    except Exception as error:
        _tell_unexpected(error, verbose=False)
        return COULD_NOT_RUN
    return OK


def check_standard_output(output: object = None) -> None:
    """Before anything is asked: is there a standard output to write to? output: the file that is written instead."""
    if output is None and (sys.stdout is None or getattr(sys.stdout, "closed", False)):
        raise RelationalError("standard output is closed: name a file for the answers with -o")
