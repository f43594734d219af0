"""Paths as a command line gives them."""

from pathlib import Path


def given_path(text: str) -> Path:
    """The path that an option names; a shell leaves the ``~`` of ``--out=~/runs`` as it is.

    Args:
        text: as it was given.
    Examples:
        >>> given_path("~") == Path.home(), given_path("a/~b")
        (True, PosixPath('a/~b'))
    """
    return Path(text).expanduser()
