"""A run's record names the commit that it was launched from."""

import subprocess
from pathlib import Path

from launcher.git_state import git_sha

IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *IDENTITY, *words], check=True, capture_output=True,
                          text=True).stdout.strip()


def test_a_checkout_is_named_by_its_commit_and_by_whether_files_were_changed(tmp_path: Path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "one")
    sha = git(tmp_path, "log", "-1", "--format=%H")
    assert git_sha(tmp_path) == sha and len(sha) == 40
    (tmp_path / ".env").write_text("KEY=1")
    assert git_sha(tmp_path) == f"{sha}-dirty"  # it would travel
    (tmp_path / ".git/info/exclude").write_text(".env")
    assert git_sha(tmp_path) == sha
    (tmp_path / "a").write_text("2")
    assert git_sha(tmp_path) == f"{sha}-dirty"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch):
    assert git_sha(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_sha(tmp_path) is None
