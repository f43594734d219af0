"""Files that are written: never over what was read, over another's only when told to, and whole or not at all."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path


class OutputError(ValueError):
    """A file must not or cannot be written; the message says which, why, and what to do."""


def check_outputs(files, *, inputs=(), overwrite=False):
    """Looks before the work at the files that it will write.

    Args:
        files: paths to be written; the folders that they are in may be missing.
        inputs: paths that are read, files or folders; none of them is ever written over.
        overwrite: True where files that are there already may be replaced.
    Raises:
        OutputError: a file is one of the inputs, is a folder, is there already, or cannot be written where it is.
    """
    for file in map(Path, files):
        if any(_same(file, read) for read in inputs):
            raise OutputError(f"{file} is what is read; give another place to write to.")
        if file.is_dir():
            raise OutputError(f"{file} is a folder; give the path of a file.")
        if file.exists() and not overwrite:
            raise OutputError(f"{file} exists already; give another place to write to, or --overwrite to replace it.")
        folder = next(parent for parent in file.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise OutputError(f"{file} cannot be written: {folder} is no folder; give another place to write to.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{file} cannot be written: no leave to write to {folder}; give another place.")


@contextmanager
def written_beside(file):
    """Path to write a file to; it takes its place when the block ends well, and leaves no trace otherwise.

    The path has the file's own name, in a folder that lies beside it for the time being. Other files that are written
    to that folder, as large ONNX graphs have, are moved too.

    Args:
        file: path; its folder is made where it is missing.
    Yields:
        Path.
    Raises:
        OSError: as the file system says; FileExistsError where one of the other files is there without the file.
    """
    file = Path(file).absolute()
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


def one_sentence(error):
    """An error as one line: an OSError names the file and says what the system said, others say what they say."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename2 or error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}; give another place, or make room and leave to write there."
    return " ".join(str(error).split())


def _same(file, read):
    return file.absolute() == Path(read).absolute() or (file.exists() and Path(read).exists() and file.samefile(read))
