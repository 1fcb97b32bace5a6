"""Optional packages: an import that fails is told in one line, which says what failed and what installs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from ard.core.errors import BrokenExtraError, MissingExtraError

MODULES = {"scikit-learn": "sklearn"}
"""The packages whose module has another name than pip knows."""


@contextmanager
def importing(package: str, extra: str) -> Iterator[None]:
    """Around the import of an optional `package`, which `extra` of pyproject.toml installs.

    MissingExtraError when it is not installed; BrokenExtraError, with the reason, when its import fails.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != MODULES.get(package, package):
            raise _broken(package, extra, error) from error
        raise MissingExtraError(package, extra) from None
    except Exception as error:
        raise _broken(package, extra, error) from error


def _broken(package: str, extra: str, error: Exception) -> BrokenExtraError:
    """Packages that import their parts late wrap the failure, so the first cause is what is told."""
    cause: BaseException = error
    while before := cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__):
        cause = before
    return BrokenExtraError(package, extra, f"{type(cause).__name__}: {cause}")
