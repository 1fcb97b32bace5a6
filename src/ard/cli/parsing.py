"""A verb and its options to a command object, or one line that says what is wrong with them."""

import contextlib
import importlib
import io
import re
from collections.abc import Iterable
from typing import Any

from ard.cli.commands import COMMANDS, meant, split
from ard.cli.given import Choosy, given_in
from ard.cli.home import at_home
from ard.cli.preset_defaults import with_preset
from ard.core.errors import InputError
from ard.core.offline import environment

FRAME = "─│╭╮╰╯├┤"


def parse(verb: str, arguments: list[str]) -> Any:
    """The command object for a verb; InputError in one line when the options do not parse."""
    if verb not in COMMANDS:
        split(verb.split())
    command = with_preset(verb, _command(verb), arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = at_home(_read(verb, command, arguments))
    except SystemExit as stop:
        if stop.code:
            raise InputError(_explained(verb, complaint.getvalue(), arguments)) from None
        raise
    if isinstance(parsed, Choosy):
        parsed.refuse_useless(given_in(arguments))
    return parsed


def help_of(verb: str) -> str:
    """What `ard VERB --help` prints, made from the command's class."""
    text = io.StringIO()
    with environment({"COLUMNS": "80"}), contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        _read(verb, with_preset(verb, _command(verb), []), ["--help"])
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def options_in(help_text: str) -> set[str]:
    """The options that a help text explains, such as --num-steps."""
    lines = (line.strip(f"{FRAME} ") for line in help_text.splitlines())
    return {
        option for line in lines if line.startswith("-") for option in re.findall(r"(?:^|, )(--?[a-z][\w-]*)", line)
    }


def _command(verb: str) -> Any:
    module, name, _ = COMMANDS[verb]
    return getattr(importlib.import_module(module), name)


def _read(verb: str, command: Any, arguments: list[str]) -> Any:
    import tyro

    config = (tyro.conf.EnumChoicesFromValues, tyro.conf.OmitArgPrefixes)
    return tyro.cli(command, args=arguments, prog=f"ard {verb}", config=config)


def _explained(verb: str, complaint: str, arguments: Iterable[str]) -> str:
    """Why tyro refused the arguments, in a line: the first unknown option, what is missing, or its own words."""
    known = options_in(help_of(verb))
    names = (word.partition("=")[0] for word in arguments if re.match(r"--?[A-Za-z]", word))
    unknown = [name for name in names if name.replace("_", "-") not in known]
    lines = [line.strip(f"{FRAME} ") for line in complaint.splitlines()]
    title, *body = [line for line in lines if line.strip("-")] or [""]
    told, more = " ".join(body), f"ard {verb} --help explains all"
    if unknown and "Unrecognized options" in f"{title} {told}":
        return f"{verb} has no option {unknown[0]}; {meant(unknown[0], known)}{more}"
    if stray := re.search(r"Unrecognized options: (\S*[^\s,])", told):
        return f"{stray[1]!r} belongs to no option of {verb}; {more}"
    if title == "Required options":
        missing = [line.split()[0] for line in body if re.match(r"--|[A-Z]+( |$)|\{", line)]
        return f"{verb} needs {' and '.join(missing)}; {more}"
    reason = re.split(r"Argument helptext:|For full helptext", told)[0].rstrip(" .")
    return f"{reason}; {more}"
