"""The command ``gplvm-xp``: embed a table, transform more rows, map rates of events, say what this
machine has.

Exit codes: 0 done; 1 the computation failed (no Cholesky factor, memory, no GPU, a file that can't
be written); 2 wrong usage or an input that can't be read; 130 interrupted, with the best state
written if there is one.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Sequence

# NumPy and everything above it are imported where they are used, so that --help is immediate.
from gplvm_xp._arguments import parser
from gplvm_xp.cli._embed import embed, transform
from gplvm_xp.cli._rate_map import rate_map
from gplvm_xp.cli._shared import DONE, FAILED, INTERRUPTED, USAGE, UsageError, line, say


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Without the program's name; default ``sys.argv[1:]``.

    Returns
    -------
    int
        The exit code (see the module).
    """
    try:
        args = parser().parse_args(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else USAGE
    try:
        return _COMMANDS[args.command](args)
    except KeyboardInterrupt:
        say("interrupted before there was anything to write")
        return INTERRUPTED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        say(f"error: {line(error)}")
        return _code_of(error)


def _code_of(error: Exception) -> int:
    from gplvm_xp.errors import NotPositiveDefiniteError

    if isinstance(error, NotPositiveDefiniteError):
        return FAILED
    return USAGE if isinstance(error, UsageError | ValueError | TypeError) else FAILED


def _info(args: argparse.Namespace) -> int:
    from gplvm_xp._machine import report

    for name, value in report():
        print(f"{name:<20} {value}")
    return DONE


_COMMANDS = {"embed": embed, "transform": transform, "rate-map": rate_map, "info": _info}


__all__ = ["DONE", "FAILED", "INTERRUPTED", "USAGE", "main"]
