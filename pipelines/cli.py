"""The `wsi` command: runs a command line and turns what goes wrong into one line and a code.

Nothing heavy is imported here; each command imports what it needs.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from errno import EDQUOT, ENOSPC

from cyclopts import CycloptsError

# In the order of the reference.
from pipelines.commands import look, slides, bags, tables, learn, judge, apply  # isort: skip
from pipelines.commands.base import app, talking
from pipelines.stopping import Stopped, forget, terminated

__all__ = ["COMMANDS", "app", "main", "run_command"]

COMMANDS = (look, slides, bags, tables, learn, judge, apply)
"""Where the commands are; importing these adds them to the app."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; no traceback for what a user can mend."""
    code = run_command(sys.argv[1:] if argv is None else argv)
    if "pipelines.encoding" in sys.modules:
        _leave_encoding(code)
    sys.exit(code)


def _leave_encoding(code: int) -> None:
    """End the process at once where an encoder is at work that a stopped run did not wait for."""
    from pipelines.encoding import is_encoding
    from pipelines.workers import dismiss

    if is_encoding():
        dismiss()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_command(argv: Sequence[str]) -> int:
    """Return the exit code of one command line."""
    signal.signal(signal.SIGTERM, terminated)
    forget()
    talking.clear()
    debug = "--debug" in argv
    try:
        result = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
        return result if isinstance(result, int) else 0
    except CycloptsError as error:
        return _failed("USAGE", _first_line(error), 2, debug)
    except KeyboardInterrupt:
        return _interrupted(signal.SIGINT)
    except Stopped as stopped:
        return _interrupted(stopped.number)
    except BrokenPipeError:
        # The reader of a pipe has seen enough; nothing may be flushed into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _handled(error, debug)


def _interrupted(number: int) -> int:
    message = "stopped — run the same command again to go on"
    return _failed("INTERRUPTED", message, 128 + number, False)


def _handled(error: Exception, debug: bool) -> int:
    from wsi.errors import WsiError

    if isinstance(error, WsiError):
        return _failed(error.code, str(error), error.exit_code, debug)
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in (ENOSPC, EDQUOT):
        message = "memory or disk ran out — free some and rerun; what was finished is kept"
        return _failed("NOSPACE", message, 4, debug)
    if isinstance(error, OSError):
        # A failed rename knows its target too, and only that one is known to the user.
        where = error.filename2 or error.filename or "a file"
        message = f"{where}: {error.strerror or error} — check the path and its permissions"
        return _failed("IO", message, 1, debug)
    message = f"{type(error).__name__}: {error} — this is a bug; rerun with --debug and report it"
    return _failed("BUG", message, 1, debug)


def _failed(code: str, message: str, exit_code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error[{code}]: {message}", file=sys.stderr)
    for console in talking:
        console.failed(code, message)
    return exit_code


def _first_line(error: CycloptsError) -> str:
    text = " ".join(str(error).split())
    return f"{text} — see `wsi --help`, or `wsi COMMAND --help`"


if __name__ == "__main__":
    main()
