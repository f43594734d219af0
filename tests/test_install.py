"""The installer: what pip is told, uv is told; a machine without uv gets pip; the lock is that of constraints.txt."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import install
import pytest
from packaging.requirements import Requirement
from packaging.tags import sys_tags

ROOT = Path(__file__).resolve().parents[1]


def pins(name):
    """{(package, version)} of a file of constraints."""
    lines = (ROOT / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {(one.name.lower().replace("_", "-"), str(one.specifier).removeprefix("==")) for one in found}


def wheel(path, tags, version="1.0"):
    """Writes a wheel of the empty package `thing`, whose file WHEEL names the tags."""
    info = f"thing-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("thing.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: {tags}\n")
        file.writestr(f"{info}/RECORD", "")


def test_the_lock_has_what_is_pinned_and_what_setup_asks_for():
    lock = pins("constraints-lock.txt")
    assert pins("constraints.txt") <= lock
    text = (ROOT / "setup.py").read_text().split("install_requires")[1]
    asked = {name.replace("_", "-") for name in re.findall(r'"([a-z][\w-]+)(?:\[\w+\])?[^"]*"(?:,|\])(?!\s*:)', text)}
    assert {"nemo-toolkit", "matplotlib", "ruff", "cupy-cuda12x"} <= asked <= {name for name, _ in lock}


def test_uv_looks_where_pip_does(tmp_path):
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://one/simple\nextra-index-url =\n  https://two/simple\n  https://three/simple\n"
        "find-links = /wheels\n[install]\nconstraint = /c.txt\n"
    )
    # pip's own listing of a file and of the environment, which stands before the file
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        env={"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_FIND_LINKS": "/a /b", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    settings = install.pip_settings(listing.stdout, "unused")
    both = install.constraints(settings, {"UV_CONSTRAINT": "/d.txt"})
    assert both == ["--constraint", "/c.txt", "--constraint", "/d.txt"]
    found = install.uv_environment(settings, {"UV_TORCH_BACKEND": "cpu"})
    wanted = {
        # uv asks the default last, and pip's main index has all files of a version
        "UV_INDEX": "https://one/simple https://two/simple",
        "UV_DEFAULT_INDEX": "https://three/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/a,/b",
        "UV_TORCH_BACKEND": "cpu",
    }
    assert {key: found.get(key) for key in wanted} == wanted
    assert install.uv_environment({"index-url": "one", "extra-index-url": "two"}, {"UV_DEFAULT_INDEX": "mine"}) == {
        "UV_DEFAULT_INDEX": "mine",
        "UV_INDEX": "two",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def test_an_older_name_of_uvs_main_index_is_heeded():
    found = install.uv_environment({"index-url": "one", "extra-index-url": "two"}, {"UV_INDEX_URL": "mine"})
    assert found["UV_INDEX_URL"] == "mine" and found["UV_INDEX"] == "two" and "UV_DEFAULT_INDEX" not in found


@pytest.mark.parametrize("key", ["timeout", "default-timeout"])
def test_a_proxy_and_a_timeout_reach_uv(key):
    found = install.uv_environment({"proxy": "http://p:3128", key: "2.5"}, {"PATH": "/bin"})
    assert found == {"ALL_PROXY": "http://p:3128", "UV_HTTP_TIMEOUT": "3", "PATH": "/bin"}


def test_pips_own_main_index_is_known_where_none_is_set():
    main_index = install.output([sys.executable, "-c", install.MAIN_INDEX]).strip()
    assert main_index.startswith("https://") and main_index.endswith("/simple")
    assert install.pip_settings("", main_index) == {"index-url": main_index}
    assert install.pip_settings("global.index-url='mine'\n", main_index) == {"index-url": "mine"}


def test_of_one_version_uv_takes_the_file_that_pip_takes(tmp_path):
    """An index with the wheel of all machines, and a later one with this machine's: uv must find the second."""
    folders = [tmp_path / name / "simple" / "thing" for name in ("any", "machine")]
    tag = next(str(tag) for tag in sys_tags() if tag.platform != "any" and tag.abi == "none")
    for folder, tags in zip(folders, ("py3-none-any", tag)):
        folder.mkdir(parents=True)
        wheel(folder / f"thing-1.0-{tags}.whl", tags)
        (folder / "index.html").write_text(f'<a href="thing-1.0-{tags}.whl">thing</a>')
    extra, main_index = (f"file://{folder.parent}" for folder in folders)
    theirs = install.uv_environment(
        install.pip_settings(f"global.extra-index-url='{extra}'\n", main_index), {"PATH": os.environ["PATH"]}
    )
    pytest.importorskip("uv")  # pip alone installs where it cannot be had
    command = [sys.executable, "-m", "uv", "pip", "install", "--offline", "--target", str(tmp_path / "out"), "thing"]
    subprocess.run(command, env={**theirs, "UV_CACHE_DIR": str(tmp_path / "cache")}, check=True)
    assert f"Tag: {tag}" in (tmp_path / "out" / "thing-1.0.dist-info" / "WHEEL").read_text()


def test_the_lock_does_not_hide_pips_own_constraints(tmp_path, monkeypatch):
    for number in "12":
        wheel(tmp_path / f"thing-{number}.0-py3-none-any.whl", "py3-none-any", f"{number}.0")
    for name, text in (("of_pip", "thing<2"), ("lock", "other==1")):
        (tmp_path / name).write_text(f"{text}\n")
    pytest.importorskip("uv")
    listing = f"global.constraint='{tmp_path}/of_pip'\nglobal.find-links='{tmp_path}'\nglobal.no-index='true'\n"
    monkeypatch.setattr(install, "output", lambda command: listing)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    succeeds = install.succeeds

    def without_fetching_uv(command, **options):
        return "--quiet" in command or succeeds(command, **options)

    monkeypatch.setattr(install, "succeeds", without_fetching_uv)
    arguments = ["--constraint", tmp_path / "lock", "--target", tmp_path / "out", "thing"]
    assert install.by_uv(sys.executable, arguments)
    assert (tmp_path / "out" / "thing-1.0.dist-info").is_dir()


def test_what_python_may_not_write_later_is_compiled_at_once():
    assert install.uv_environment({}, {}) == {}
    assert install.uv_environment({}, {"PYTHONDONTWRITEBYTECODE": "1"})["UV_COMPILE_BYTECODE"] == "1"


@pytest.mark.parametrize(
    "broken, wanted",
    [
        ([], ["venv", "pip install uv", "uv pip install"]),
        (["pip install uv"], ["venv", "pip install uv", "pip install"]),
        (["uv pip install"], ["venv", "pip install uv", "uv pip install", "pip install"]),
        (["venv"], ["venv"]),
        (["uv pip install", "pip install"], ["venv", "pip install uv", "uv pip install", "pip install"]),
    ],
)
def test_pip_takes_the_place_of_uv_with_a_word(monkeypatch, tmp_path, capsys, broken, wanted):
    ran = []

    def run(command, **options):
        words = " ".join(command[2:] if command[1] == "-m" else command)
        if options.get("capture_output"):
            return subprocess.CompletedProcess(command, 0, "", "")
        kinds = ("venv", "pip install uv", "uv pip install", "pip install")
        short = words.replace(" --quiet --disable-pip-version-check", "")
        ran.append(next(kind for kind in kinds if short.startswith(kind)))
        return subprocess.CompletedProcess(command, int(ran[-1] in broken))

    monkeypatch.setattr(install.subprocess, "run", run)
    ends_well = "venv" not in broken and "pip install" not in broken
    if ends_well:
        install.install(tmp_path, ".[demo,test]", "lock.txt")
    else:
        with pytest.raises(SystemExit, match="could not be made|Not installed, for the reason above"):
            install.install(tmp_path, ".[demo,test]", "lock.txt")
    assert ran == wanted
    said = capsys.readouterr().out
    assert ("pip t" in said) is ("pip install" in wanted) and ("Installed in" in said) is ends_well
    if "uv pip install" in ran or "pip install" in ran:
        assert "To download: " in said and "On disk: " in said and "minutes" in said


def test_an_environment_without_pip_is_made_anew(monkeypatch, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "half")], check=True)
    python = install.interpreter(tmp_path / "half")
    assert python.exists() and not install.has_pip(python)
    assert not install.has_pip(tmp_path / "none") and install.has_pip(Path(sys.executable))
    # its making fails again, as on Debian without python3-venv: nothing is installed into it
    ran = []
    monkeypatch.setattr(install, "succeeds", lambda command, **options: bool(ran.append(command[1:3])))
    with pytest.raises(SystemExit, match="half could not be made; .* `apt install python3-venv` helps"):
        install.install(tmp_path / "half", ".", "lock.txt")
    assert ran == [["-m", "venv"]]


def test_the_folder_of_the_clone_may_have_spaces():
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if re.search(r"\$\((CURDIR|abspath)", line)]
    assert lines and all(re.search(r'"\$\(CURDIR\)[^"]*"', line) for line in lines)


def test_another_python_is_refused_in_one_sentence():
    for version in ((3, 10), (3, 12)):
        install.check_python(version)
    for version in ((3, 9), (3, 13)):
        with pytest.raises(SystemExit, match=rf"This is Python 3.{version[1]}, and NeMo needs 3.10 to 3.12; name one"):
            install.check_python(version)
