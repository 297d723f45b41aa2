"""What a machine keeps: hashes are remembered as long as files stay as they were, and full disks are told."""

import errno
import hashlib
from pathlib import Path

import pytest

from trainer import local_cache
from trainer.local_cache import LocalDiskError, disk_errors, is_verified, one_at_a_time


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ldlm"


def test_a_file_is_hashed_once_and_again_when_it_has_changed(tmp_path: Path, monkeypatch) -> None:
    path, hashed = tmp_path / "weights", []
    path.write_bytes(b"some weights")
    sha256 = hashlib.sha256(b"some weights").hexdigest()
    whole = local_cache.sha256_of
    monkeypatch.setattr(local_cache, "sha256_of", lambda path: hashed.append(path) or whole(path))
    assert [is_verified(path, sha256) for _ in range(3)] == [True] * 3
    assert len(hashed) == 1
    path.write_bytes(b"other things")
    assert not is_verified(path, sha256) and len(hashed) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_is_told_with_a_way_to_more_room(tmp_path: Path, number: int) -> None:
    less = "lower train.data.cache_gib"
    with pytest.raises(LocalDiskError) as caught, disk_errors(tmp_path / "x", less=less):
        raise OSError(number, "it is full")
    assert str(caught.value) == (
        f"{tmp_path}/x: cannot be kept on this disk: it is full\n  fix: lower train.data.cache_gib, or free "
        "disk space, or set XDG_CACHE_HOME to a folder on another disk")
    assert caught.value.node_exit_code == 78  # the next attempt has the same disk


def test_a_lock_that_cannot_be_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "lock"
    with pytest.raises(LocalDiskError, match="cannot be kept on this disk"), one_at_a_time(path):
        pytest.fail("in here nobody is alone")
