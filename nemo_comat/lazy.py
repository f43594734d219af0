"""Names that are imported when they are first used (PEP 562), so that what is not used costs no import."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str, home: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What a package needs to offer names of modules that it does not import.

    Args:
        package: its import path.
        home: from each name to the module inside the package that has it.
    Returns:
        the package's ``__getattr__``, ``__dir__`` and ``__all__``.
    Examples:
        >>> get, _, names = lazy_names("xml", {"parse": "dom.minidom"})
        >>> names, get("parse").__module__
        (['parse'], 'xml.dom.minidom')
    """

    def _get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    def _names() -> list[str]:
        return sorted({*vars(import_module(package)), *home})

    return _get, _names, list(home)
