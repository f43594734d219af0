"""Makes the environment: by uv, which is several times as fast as pip, or by pip where uv cannot be had.

    python3 tools/install.py ENVIRONMENT --constraint constraints-lock.txt --target '.[demo,docs,test]'

Where pip would look for packages, uv is told to look too: its indexes, folders of wheels, certificates and constraints
are taken from pip's own configuration. So a machine gets the build of PyTorch that pip would bring. What is set for uv
(UV_TORCH_BACKEND=cpu and its like) stands before that. Needs nothing but Python.

pip puts the files of all indexes together. uv takes a version from the first index that has it, though a later one may
have a better file for this machine. So uv is told pip's main index first, which has all files of its packages.
"""

import argparse
import ast
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

PYTHONS = ((3, 10), (3, 12))
# measured on Linux with the locked set: downloads by the sizes that the index states, disk by du
WHAT = (
    "NeMo, PyTorch and what they need, about 170 packages. To download: 0.8 GB with PyTorch for CPUs, 3.2 GB with "
    "PyTorch for CUDA. On disk: 2.3 GB or 5.7 GB. Time: 1 to 5 minutes, and what the download takes"
)
# uv's newer and older name of its main index
DEFAULT_INDEX = {"UV_DEFAULT_INDEX", "UV_INDEX_URL"}
# pip's names of what both have, and uv's
SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
}


# prints the index that pip asks by itself; no command of pip's lists it
MAIN_INDEX = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"


def say(sentence):
    """Says what is done now, before it is done."""
    print(f"==> {sentence}", flush=True)


def check_python(version):
    """Ends the script where NeMo has no release for this Python.

    Args:
        version: (major, minor).
    """
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        sys.exit(
            f"This is Python {version[0]}.{version[1]}, and NeMo needs 3.10 to 3.12; name one of these, as in "
            "`make demo PYTHON=python3.12`."
        )


def pip_settings(listing, main_index):
    """What `pip config list` lists, as a dict: what the environment says stands before the files.

    Args:
        listing: str, lines such as ``global.index-url='…'`` and ``:env:.find-links='…'``.
        main_index: str, the index that pip asks where none is set.
    Returns:
        dict, with an ``index-url`` always.
    """
    given = {key.rpartition(".")[::2]: value for key, _, value in (x.partition("=") for x in listing.splitlines())}
    found = {"index-url": main_index}
    for section in ("global", "install", ":env:"):
        found.update({name: str(ast.literal_eval(value)) for (of, name), value in given.items() if of == section})
    return found


def uv_environment(settings, given):
    """The environment in which uv looks where pip would.

    Args:
        settings: dict of `pip_settings`. given: the environment as it is; what it sets for uv already is kept.
    Returns:
        dict.
    """
    theirs = {SETTINGS[name]: " ".join(value.split()) for name, value in settings.items() if name in SETTINGS}
    if "UV_INDEX" in theirs:
        # pip takes the best version of all places; uv by default stays with the first that has the package
        theirs["UV_INDEX_STRATEGY"] = "unsafe-best-match"
        # uv asks its default index last, so the last of pip's others takes that place
        if not given.keys() & {"UV_INDEX", *DEFAULT_INDEX}:
            *first, theirs["UV_DEFAULT_INDEX"] = [theirs["UV_DEFAULT_INDEX"], *theirs["UV_INDEX"].split()]
            theirs["UV_INDEX"] = " ".join(first)
    if "UV_HTTP_TIMEOUT" in theirs:
        theirs["UV_HTTP_TIMEOUT"] = str(math.ceil(float(theirs["UV_HTTP_TIMEOUT"])))  # uv takes whole seconds alone
    if given.keys() & DEFAULT_INDEX:
        theirs.pop("UV_DEFAULT_INDEX", None)  # which would stand before a UV_INDEX_URL
    # uv wants commas here, pip writes blanks
    if "UV_FIND_LINKS" in theirs:
        theirs["UV_FIND_LINKS"] = theirs["UV_FIND_LINKS"].replace(" ", ",")
    # where Python may write no bytecode, as in many containers, each import of NeMo would compile it anew: 30 s, not 12
    if given.get("PYTHONDONTWRITEBYTECODE"):
        theirs["UV_COMPILE_BYTECODE"] = "1"
    return {**theirs, **given}


def constraints(settings, given):
    """Options that name the files of versions of pip's settings and of uv's environment.

    uv reads its environment's only where the command names none.

    Args:
        settings: dict of `pip_settings`. given: the environment as it is.
    Returns:
        list of str.
    """
    files = f"{settings.get('constraint', '')} {given.get('UV_CONSTRAINT', '')}".split()
    return [part for file in files for part in ("--constraint", file)]


def interpreter(environment):
    """Path of the environment's Python."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def succeeds(command, **options):
    """True where a command ends well; it writes to the screen."""
    try:
        return subprocess.run([str(part) for part in command], **options).returncode == 0
    except OSError as error:
        say(f"{command[0]} cannot be run: {error.strerror}.")
        return False


def has_pip(python):
    """True where an environment is whole: one whose making was stopped has a Python, and no pip."""
    command = [str(python), "-m", "pip", "--version"]
    return python.exists() and subprocess.run(command, capture_output=True).returncode == 0


def output(command):
    """What a command prints."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def by_uv(python, arguments):
    """Installs by uv, itself installed by pip; True where it went well."""
    say("uv, which installs the rest: 18 MB, some seconds.")
    if not succeeds([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"]):
        say("uv cannot be had here; pip takes its place, which takes several times as long.")
        return False
    listed = output([python, "-m", "pip", "config", "list"])
    main_index = output([python, "-c", MAIN_INDEX]).strip()
    say(f"{WHAT}.")
    settings = pip_settings(listed, main_index)
    command = [python, "-m", "uv", "pip", "install", "--python", python, *arguments, *constraints(settings, os.environ)]
    if succeeds(command, env=uv_environment(settings, os.environ)):
        return True
    say("uv did not bring it about, for the reason above; pip tries now, which takes several times as long.")
    return False


def by_pip(python, arguments):
    """Installs by pip; True where it went well."""
    say(f"{WHAT}; by pip three to four times as long.")
    return succeeds([python, "-m", "pip", "install", "--disable-pip-version-check", *arguments])


def install(environment, target, constraint, installer="auto"):
    """Makes the environment where it is missing or lacks pip, and installs target, editable.

    Args:
        environment: path. target: such as ``.[demo,docs,test]``. constraint: path of a file of versions.
        installer: auto | uv | pip.
    """
    begin = time.monotonic()
    python = interpreter(environment)
    if not has_pip(python):
        say(f"An environment in {environment}: some seconds.")
        if not succeeds([sys.executable, "-m", "venv", environment]):
            sys.exit(f"{environment} could not be made; on Debian and Ubuntu, `apt install python3-venv` helps.")
    arguments = ["--constraint", constraint, "--editable", target]
    ways = {"auto": (by_uv, by_pip), "uv": (by_uv,), "pip": (by_pip,)}[installer]
    if not any(way(python, arguments) for way in ways):
        sys.exit("Not installed, for the reason above; the same command tries again.")
    free = shutil.disk_usage(environment).free / 1e9
    say(f"Installed in {time.monotonic() - begin:.0f} seconds; {free:.0f} GB of disk are free.")


def main():
    parser = argparse.ArgumentParser(description="Make an environment with nemo_comat and all it needs.")
    parser.add_argument("environment", type=Path, help="folder of the environment; made where it is missing")
    parser.add_argument("--constraint", default="constraints-lock.txt", help="file of versions (default: %(default)s)")
    parser.add_argument(
        "--target", default=".[demo,docs,test]", help="what is installed, editable (default: %(default)s)"
    )
    parser.add_argument("--installer", choices=("auto", "uv", "pip"), default="auto", help="default: uv, else pip")
    args = parser.parse_args()
    check_python(sys.version_info[:2])
    install(args.environment, args.target, args.constraint, args.installer)


if __name__ == "__main__":
    main()
