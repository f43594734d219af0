"""The commit that is named is that of the clone the package is imported from."""

import re
import subprocess

from nemo_comat import commit


def git(folder, *command):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(folder), *identity, *command], check=True, capture_output=True)


def test_the_commit_is_named_and_whether_it_was_edited(tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "CLONE", tmp_path)
    assert commit.commit_here() == "unknown"
    git(tmp_path, "init", "-q")
    (tmp_path / "mine.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    git(tmp_path, "tag", "-am", "v1", "v1")
    said = commit.commit_here()
    assert re.fullmatch("[0-9a-f]{7,}", said)
    (tmp_path / "beside.py").write_text("2")
    assert commit.commit_here() == said
    (tmp_path / "mine.py").write_text("2")
    assert commit.commit_here() == f"{said}+changes"
    # a package that is installed within another's clone
    monkeypatch.setattr(commit, "CLONE", tmp_path / "site-packages")
    assert commit.commit_here() == "unknown"
    monkeypatch.setattr(commit, "CLONE", tmp_path)
    monkeypatch.setenv("PATH", "")
    assert commit.commit_here() == "unknown"
