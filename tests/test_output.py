"""Files that are written: what is refused before the work, and what is left of a write that fails."""

import errno
import os
import stat

import pytest

from nemo_comat.output import OutputError, check_outputs, one_sentence, written_beside

FULL, REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EACCES, errno.EPERM, errno.EROFS)


def test_what_is_read_is_never_written_over(tmp_path, monkeypatch):
    file = tmp_path / "in.nemo"
    file.write_text("in")
    (tmp_path / "link").symlink_to(file)
    os.link(file, tmp_path / "hard")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").symlink_to(tmp_path)
    ways = ("in.nemo", f"../{tmp_path.name}/in.nemo", "not/yet/../../in.nemo", "folder/in.nemo", "link", "hard")
    for out in (file, *ways):
        for overwrite in (True, False):
            with pytest.raises(OutputError, match=r"(in.nemo|link|hard) is what is read; give another place"):
                check_outputs([tmp_path / "new", out], inputs=["gone", file], overwrite=overwrite)


def test_what_is_there_is_replaced_only_when_told(tmp_path):
    (tmp_path / "there").write_text("mine")
    with pytest.raises(OutputError, match="there exists already; give another place to write to, or --overwrite"):
        check_outputs([tmp_path / "new", tmp_path / "there"])
    (tmp_path / "loose").symlink_to("nowhere")
    for out in ("not/yet/../../there", "loose"):
        with pytest.raises(OutputError, match=f"{out} exists already"):
            check_outputs([tmp_path / out])
    check_outputs([tmp_path / "new", tmp_path / "there", tmp_path / "a" / "b" / "new"], overwrite=True)
    # looking makes nothing
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loose", "there"]


def test_places_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    for out, message in [
        (tmp_path, f"{tmp_path} is a folder; give the path of a file"),
        (tmp_path / "x" / "..", "is a folder; give the path of a file"),
        (tmp_path / "file" / "x" / "out", f"out cannot be written: {tmp_path}/file is no folder"),
    ]:
        with pytest.raises(OutputError, match=message):
            check_outputs([out], overwrite=True)
    # the superuser, who may run these tests, has leave everywhere
    monkeypatch.setattr(os, "access", lambda folder, mode: str(folder) != str(tmp_path))
    with pytest.raises(OutputError, match=f"out cannot be written: no leave to write to {tmp_path};"):
        check_outputs([tmp_path / "new" / "out"])


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "out.txt"
    with written_beside(file) as partial:
        partial.write_text("first")
        assert partial.name == "out.txt" and not file.exists()
    assert file.read_text() == "first"
    with pytest.raises(ZeroDivisionError), written_beside(file) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert file.read_text() == "first" and list(file.parent.iterdir()) == [file]
    # who may read it is up to the user's umask
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_what_belongs_to_a_file_comes_with_it(tmp_path):
    (tmp_path / "weights").write_text("another's")

    def write(text):
        with written_beside(tmp_path / "graph") as partial:
            partial.write_text(text)
            (partial.parent / "weights").write_text(text)

    with pytest.raises(FileExistsError, match="weights exists already; it belongs to graph"):
        write("a")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    (tmp_path / "weights").unlink()
    for text in ("b", "c"):
        write(text)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"graph": text, "weights": text}


def test_every_error_of_the_file_system_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError) as error, written_beside(tmp_path / "file" / "out"):
        pytest.fail("there is no such place")
    assert one_sentence(error.value).startswith(f"{tmp_path}/file: ")
    for error, said in [
        (OSError(28, "No space left on device", "a"), "a: No space left on device; make room, or give another place."),
        (OSError(28, "No space left on device"), "No space left on device; make room, or give another place."),
        (PermissionError(13, "Permission denied", "a"), "a: Permission denied; give another place, or yourself leave"),
        (FileNotFoundError(2, "No such file or directory", "a"), "a: No such file or directory; give another path."),
        (FileNotFoundError("no finished run; train it"), "no finished run; train it"),
        # of a file that was to take its place
        (OSError(28, "No space left on device", "/x/.a.1/a", None, "/x/a"), "/x/a: No space left"),
        *((OSError(code, "Full", "a"), "a: Full; make room, or give another place.") for code in FULL),
        *((OSError(code, "No", "a"), "a: No; give another place, or yourself leave") for code in REFUSED),
    ]:
        assert one_sentence(error).startswith(said)
    assert one_sentence(ValueError("two\n  lines")) == "two lines"
