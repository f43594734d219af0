"""Files that are written: never over what was read, over another's only when told to, and whole or not at all."""

import errno
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

PathLike = str | os.PathLike[str]

ADVICE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "give another place, or yourself leave to use this one"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room, or give another place"),
}


class OutputError(ValueError):
    """A file must not or cannot be written; the message says which, why, and what to do."""


def check_outputs(files: Iterable[PathLike], *, inputs: Iterable[PathLike] = (), overwrite: bool = False) -> None:
    """Looks before the work at the files that it will write.

    Args:
        files: paths to be written; the folders that they are in may be missing.
        inputs: paths that are read, files or folders; none of them is ever written over.
        overwrite: True where files that are there already may be replaced.
    Raises:
        OutputError: a file is one of the inputs, is a folder, is there already, or cannot be written where it is.
    Examples:
        >>> check_outputs(["a.json"], inputs=["b.json", "a.json"])
        Traceback (most recent call last):
        nemo_comat.output.OutputError: a.json is what is read; give another place to write to.
    """
    for file in files:
        place = _place(file)
        if any(_same(place, _place(read)) for read in inputs):
            raise OutputError(f"{file} is what is read; give another place to write to.")
        if place.is_dir():
            raise OutputError(f"{file} is a folder; give the path of a file.")
        if os.path.lexists(place) and not overwrite:
            raise OutputError(f"{file} exists already; give another place to write to, or --overwrite to replace it.")
        folder = next(parent for parent in place.parents if parent.exists())
        if not folder.is_dir():
            raise OutputError(f"{file} cannot be written: {folder} is no folder; give another place to write to.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{file} cannot be written: no leave to write to {folder}; give another place.")


@contextmanager
def written_beside(file: PathLike) -> Iterator[Path]:
    """Path to write a file to; it takes its place when the block ends well, and leaves no trace otherwise.

    The path has the file's own name, in a folder that lies beside it for the time being. Other files that are written
    to that folder, as large ONNX graphs have, are moved too.

    Args:
        file: path; its folder is made where it is missing.
    Yields:
        Path.
    Raises:
        OSError: as the file system says; FileExistsError where one of the other files is there without the file.
    Examples:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_beside(Path(folder, "a.txt")) as part:
        ...         _ = part.write_text("a dog")
        ...     [path.name for path in Path(folder).iterdir()], Path(folder, "a.txt").read_text()
        (['a.txt'], 'a dog')
    """
    file = _place(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        yield Path(folder, file.name)
        others = [path for path in Path(folder).iterdir() if path.name != file.name]
        # whoever may replace the file may replace what belongs to it
        for path in others if not file.exists() else []:
            if (file.parent / path.name).exists():
                raise FileExistsError(f"{file.parent / path.name} exists already; it belongs to {file.name}.")
        for path in [*others, Path(folder, file.name)]:
            os.replace(path, file.parent / path.name)


def one_sentence(error: BaseException) -> str:
    """An error as one line: an OSError of the system names the file and what helps, others say what they say.

    Examples:
        >>> one_sentence(OSError(errno.ENOSPC, "No space left on device", "a.nemo"))
        'a.nemo: No space left on device; make room, or give another place.'
    """
    if isinstance(error, OSError) and error.errno:
        place = f"{error.filename2 or error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}; {ADVICE.get(error.errno, 'give another path')}."
    return " ".join(str(error).split())


@contextmanager
def exit_in_one_sentence(*errors: type[Exception]) -> Iterator[None]:
    """Ends a script with status 1 and `one_sentence`, where an OutputError, an OSError or one of errors is raised.

    A tarfile.ReadError, of a ``.nemo`` file that is not whole, is such an error too.

    Args:
        errors: further classes of exceptions.
    Examples:
        >>> with exit_in_one_sentence(KeyError):
        ...     raise OutputError("a.json exists already.")
        Traceback (most recent call last):
        SystemExit: a.json exists already.
    """
    expected: tuple[type[Exception], ...] = (OutputError, OSError, tarfile.ReadError, *errors)
    try:
        yield
    except expected as error:
        sys.exit(one_sentence(error))


def _place(file: PathLike) -> Path:
    """Where a path leads, links of folders and ".." followed; the last part may be a link, which is replaced itself."""
    file = Path(os.path.abspath(file) if Path(file).name in ("", "..") else file)
    return file.parent.resolve() / file.name


def _same(file: Path, read: Path) -> bool:
    return file.resolve() == read.resolve() or (file.exists() and read.exists() and file.samefile(read))
