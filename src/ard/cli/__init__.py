"""The command line: a verb, its options made from a dataclass, one line for a bad input."""

import importlib
import os
import sys

from ard.cli.commands import COMMANDS, members, overview, split
from ard.cli.help_texts import kept_help
from ard.cli.messages import complain, explained
from ard.cli.parsing import parse
from ard.cli.random_state import own_random_numbers
from ard.cli.streams import make_patient
from ard.cli.workplace import workplace
from ard.core.errors import InputError
from ard.core.processes import die_with_parent
from ard.core.stopping import Stopped, stopping_at_once

__all__ = ["COMMANDS", "main", "parse", "run"]


def main() -> None:
    """Run `ard VERB OPTIONS`; exit status 2 and one line for a bad input.

    ARD_PARENT is the process that started this one as a stage of its own, and without which it ends.
    """
    if "ARD_PARENT" in os.environ:
        die_with_parent(int(os.environ["ARD_PARENT"]))
    make_patient()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit status of `ard` with these arguments: 0, 2 for a bad input, 128 and the signal's number when stopped."""
    try:
        with stopping_at_once():
            _run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # A disk that is full is told here, and not at the very end.
    except InputError as error:
        return complain(str(error))
    except OSError as error:
        return complain(explained(error))
    except KeyboardInterrupt as stop:
        if "ARD_PARENT" not in os.environ:  # Which tells it itself.
            print(f"ard: {str(stop) or 'stopped'}", file=sys.stderr)
        return stop.status if isinstance(stop, Stopped) else 130
    return 0


def _run(arguments: list[str]) -> None:
    """Do what the arguments say."""
    match arguments:
        case [] | ["-h" | "--help"]:
            print(overview())
        case ["--version"]:
            print(importlib.import_module("ard").__version__)
        case [group, "-h" | "--help"] if members(group):
            print(overview(group))
        case _:
            verb, options = split(arguments)
            if options in (["-h"], ["--help"]):
                print(kept_help(verb), end="")
            else:
                command = parse(verb, options)
                with own_random_numbers(), workplace(verb, command):
                    command.run()
