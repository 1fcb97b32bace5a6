"""One line for what went wrong: short enough to be read, and only what is true."""

import errno
import sys

LONGEST_WORD = 160
LONGEST_LINE = 800
FULL = {errno.ENOSPC, errno.EDQUOT, None}  # None: what another library says of a full disk has no number.
CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}


def complain(message: str) -> int:
    """Print one line that fits and return the exit status of a bad input."""
    print(f"ard: {fitted(message)}", file=sys.stderr)
    return 2


def fitted(message: str) -> str:
    """A message as one line, long words without their middle and a long line without its end."""
    line = " ".join(map(_shortened, message.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


def explained(error: OSError) -> str:
    """What the system refused and where, with what to do about it where that is known."""
    reason, where = error.strerror or str(error), f": {error.filename}" if error.filename else ""
    if error.errno in FULL:
        return f"{reason}{where}; nothing is lost, run the same command again to go on"
    if error.errno in CLOSED:
        return f"{reason}{where}; choose another place, or allow it there"
    if error.errno == errno.EMFILE:
        return f"{reason}{where}; allow more with ulimit -n"
    return f"{reason}{where}"


def _shortened(word: str) -> str:
    if len(word) <= LONGEST_WORD:
        return word
    half = LONGEST_WORD // 2
    return f"{word[:half]}…{word[1 - half :]}"
