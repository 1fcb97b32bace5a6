"""The one exception a user may meet: a wrong input, told in one line."""


class InputError(ValueError):
    """A value from outside (option, file, folder) that cannot be used; the message names it and what is allowed."""


class MissingExtraError(InputError):
    """An optional package that a command needs is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package}, which is not installed: run pip install '.[{extra}]' in ard's folder"
        )
