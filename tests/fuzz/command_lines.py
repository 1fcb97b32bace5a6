"""Command lines with words that nobody would type, and with words missing, doubled and in another order."""

import contextlib
import io
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from world import READERS

from ard.cli import COMMANDS, run

WORDS = [
    "", " ", "-", "--", "---", "-1", "0", "1", "-0", "00", "0.5", "nan", "inf", "-inf", "1e400", "1e-400",
    "9" * 400, "9" * 5000, "1" + "0" * 30, "2**31", "0x10", "1_000", "1,2", "1,,2", ",", "0-", "-0-3", "5-2",
    "0-99999999999", "1-2-3", "None", "none", "True", "{}", "[]", "()", "x", "x" * 300, "x" * 5000, "\udcff", "ä",
    "\U0001f40d", "a\nb", "a\tb", "*", "?", "{0..99999999999}.tar", "%s", "{x}", "$HOME", ".", "teacher", "store",
    "student", "half", "text", "DiT.pt", "vae", "prompts.txt", "samples.npz", "pictures", "new", "new/deeper",
    "a.png", "a.npz", "cpu", "cuda", "cuda:7", "mps", "meta", "--help", "-h", "--version", "--dry-run",
    "@prompts.txt",
]  # fmt: skip
UNWANTED = {"--no-dry-run"}  # Work, where only its plan is wanted.


@dataclass(frozen=True)
class Line:
    """What follows `ard`."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return "ard " + " ".join(word[:80] if word else "''" for word in self.words)


def lines(seed: int) -> Iterator[Line]:
    """An endless series, the same for the same seed. Commands only plan where they can."""
    options = {verb: _options(verb) for verb in COMMANDS}
    starts = [tuple(command) for commands in READERS.values() for command in commands]
    starts += [tuple(verb.split()) for verb in COMMANDS]
    number = 0
    while True:
        rng = random.Random(f"{seed}/{number}")
        start = list(rng.choice(starts))
        verb = next((verb for verb in COMMANDS if start[: len(verb.split())] == verb.split()), start[0])
        for _ in range(rng.randint(1, 3)):
            _disturb(start, options[verb], rng)
        yield Line((*start, "--dry-run") if "--dry-run" in options[verb] else tuple(start))
        number += 1


def _disturb(words: list[str], options: list[str], rng: random.Random) -> None:
    """One change in place, behind the verb."""
    place = rng.randrange(1, len(words) + 1)
    match rng.randrange(7):
        case 0:
            words[place:place] = [rng.choice(options), rng.choice(WORDS)]
        case 1:
            words += [f"{rng.choice(options)}={rng.choice(WORDS)}"]
        case 2 if place < len(words):
            words[place] = rng.choice(WORDS)
        case 3 if place < len(words):
            del words[place]
        case 4 if place < len(words):
            words.insert(place, words[place])
        case 5 if place < len(words):
            other = rng.randrange(1, len(words))
            words[place], words[other] = words[other], words[place]
        case _:
            words.append(rng.choice([*options, *WORDS]))


def _options(verb: str) -> list[str]:
    """All options of a command, from its help."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        run([*verb.split(), "--help"])
    return sorted({*re.findall(r"(?<!\w)--[a-z][a-z0-9-]*", said.getvalue())} - UNWANTED)
