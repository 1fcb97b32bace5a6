"""Renew the help texts that the command line keeps: make help-texts."""

from ard.cli.commands import COMMANDS
from ard.cli.help_texts import FOLDER, help_file
from ard.cli.parsing import help_of

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for verb in COMMANDS:
        help_file(verb).write_text(help_of(verb), encoding="utf-8")
