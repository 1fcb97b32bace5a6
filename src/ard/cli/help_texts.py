"""The commands' help texts, kept as files, because making them imports PyTorch; `make help-texts` renews them."""

from pathlib import Path

FOLDER = Path(__file__).parent / "help"


def help_file(verb: str) -> Path:
    """Where the help text of a verb such as `analyze masks` is kept."""
    return FOLDER / f"{verb.replace(' ', '-')}.txt"


def kept_help(verb: str) -> str:
    """What `ard VERB --help` prints."""
    return help_file(verb).read_text(encoding="utf-8")
