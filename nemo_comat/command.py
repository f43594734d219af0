"""The commands that an installation brings: the scripts of examples/, with the configs of conf/ beside them.

    comat-train --config-name=conformer_ctc_comat model.train_ds.manifest_filepath=train.json …
    comat-tokenizer --manifest=train.json --data_root=tokenizers --vocab_size=128

They take what the scripts take. A wheel carries scripts and configs in its folder `shipped`, laid out as in the
repository; where the package is installed editable, those of the repository are run.
"""

import runpy
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def find_script(name: str, package: Path = PACKAGE) -> Path:
    """Where a script of examples/ is.

    Args:
        name: such as ``speech_to_text_comat``. package: folder of this package.
    Returns:
        path.
    Raises:
        FileNotFoundError: the installation has no such script.
    Examples:
        >>> find_script("build_tokenizer").name
        'build_tokenizer.py'
    """
    places = [root / "examples" / f"{name}.py" for root in (package / "shipped", package.parent)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{name}.py is neither in {places[0].parent} nor in {places[1].parent}; install nemo_comat anew."
        )
    return found


def run_script(name: str) -> None:
    """Runs a script of examples/ as Python would, with the command line's arguments.

    Args:
        name: as in `find_script`.
    Examples:
        >>> run_script("no_such")
        Traceback (most recent call last):
        FileNotFoundError: no_such.py is neither in ...
    """
    script = str(find_script(name))
    sys.argv[0] = script
    runpy.run_path(script, run_name="__main__")


def train() -> None:
    """comat-train: examples/speech_to_text_comat.py.

    Examples:
        >>> find_script("speech_to_text_comat").is_file()
        True
    """
    run_script("speech_to_text_comat")


def tokenizer() -> None:
    """comat-tokenizer: examples/build_tokenizer.py.

    Examples:
        >>> find_script("build_tokenizer").is_file()
        True
    """
    run_script("build_tokenizer")
