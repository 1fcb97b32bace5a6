"""The one exception a user may meet: a wrong input, told in one line."""

from collections.abc import Mapping


class InputError(ValueError):
    """A value from outside (option, file, folder) that cannot be used; the message names it and what is allowed."""


def require_at_least(minimum: int, values: Mapping[str, int | float]) -> None:
    """InputError that names the first of `values` that is below `minimum` or not a number."""
    for name, value in values.items():
        if not value >= minimum:
            raise InputError(f"{name} is {value}; at least {minimum} is needed")


def require_at_most(maximum: int, values: Mapping[str, int | float]) -> None:
    """InputError that names the first of `values` that is above `maximum` or not a number.

    A damaged size is told before anything of that size is made.
    """
    for name, value in values.items():
        if not value <= maximum:
            raise InputError(f"{name} is {value:.6g}; at most {maximum} is allowed")


class MissingExtraError(InputError):
    """An optional package that a command needs is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package}, which is not installed: run pip install '.[{extra}]' in ard's folder"
        )


class BrokenExtraError(InputError):
    """An optional package that a command needs is installed, and its import fails."""

    def __init__(self, package: str, extra: str, reason: str) -> None:
        super().__init__(
            f"the package {package} is installed, but its import fails ({' '.join(reason.split())}): "
            f"run pip install --upgrade '.[{extra}]' in ard's folder"
        )
