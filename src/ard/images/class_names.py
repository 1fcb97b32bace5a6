"""The order of classes that are known by their names: which label each has."""

from collections.abc import Iterable


def in_label_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names by their labels: whole numbers as numbers (2 before 10), all others as text.

    torchvision's ImageFolder sorts numbers as text, too; with fewer than eleven of them both orders are the same.
    """
    found = list(names)
    if all(name.isascii() and name.isdigit() for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))
