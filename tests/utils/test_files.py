"""Files and folders are replaced whole or not at all."""

import errno
import os
import stat

import pytest

from attnwatch.errors import ConfigurationError
from attnwatch.utils.files import replaced_file, replaced_folder


def _nothing(folder, names):
    return ()


def _write_half(path, error):
    with replaced_file(path) as stream:
        stream.write(b"half of ")
        raise error


def _write_half_a_folder(folder):
    with replaced_folder(folder, _nothing) as new:
        (new / "weights").write_bytes(b"half of ")
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_file_that_can_not_be_written_leaves_the_old_one_and_nothing_else(tmp_path, old, error):
    path = tmp_path / "plan.json"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(type(error)):
        _write_half(path, error)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if old is None else [old])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_noticed_before_the_old_file_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(
        "attnwatch.utils.files.tempfile.mkstemp", lambda **_: (full, str(tmp_path / ".plan.json.x.tmp"))
    )
    with pytest.raises(OSError, match="No space left"), replaced_file(path) as stream:
        stream.write(b"new")  # is buffered: only the flush fails
    assert path.read_bytes() == b"old"


def test_a_new_file_has_the_permissions_that_any_new_file_gets_and_an_old_one_keeps_its(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    with replaced_file(tmp_path / "new") as stream:
        stream.write(b"1")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    with replaced_file(tmp_path / "new") as stream:
        stream.write(b"2")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert (tmp_path / "new").read_bytes() == b"2"


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    """Nor a device: for root, the rename would take the place of /dev/null for the whole machine."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is not a regular file"), replaced_file(tmp_path / "pipe") as stream:
        stream.write(b"1")
    assert (tmp_path / "pipe").is_fifo()
    assert len([*tmp_path.iterdir()]) == 1


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "target").write_bytes(b"1")
    (tmp_path / "link").symlink_to("target")
    with replaced_file(tmp_path / "link") as stream:
        stream.write(b"2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"2"


@pytest.mark.parametrize("has_old", [True, False])
def test_a_folder_that_can_not_be_written_leaves_the_old_one_and_nothing_else(tmp_path, has_old):
    folder = tmp_path / "model"
    if has_old:
        folder.mkdir()
        (folder / "weights").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        _write_half_a_folder(folder)
    assert list(tmp_path.iterdir()) == ([folder] if has_old else [])
    if has_old:
        assert (folder / "weights").read_bytes() == b"old"


def test_a_folder_is_put_back_where_the_second_rename_fails(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"old")
    rename = type(folder).rename

    def failing(self, target):
        if self.name.endswith(".new"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(folder), "rename", failing)
    with pytest.raises(OSError, match="Input/output"), replaced_folder(folder, _nothing) as new:
        (new / "weights").write_bytes(b"new")
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "weights").read_bytes() == b"old"


def test_files_that_are_not_left_out_stay_in_a_replaced_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "notes").write_bytes(b"mine")
    (folder / "weights").write_bytes(b"old")
    with replaced_folder(folder, lambda at, names: {"weights"}) as new:
        (new / "config").write_bytes(b"new")
    assert sorted(file.name for file in folder.iterdir()) == ["config", "notes"]


def test_a_folder_at_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="is a file; pass the path of a folder"):
        replaced_folder(tmp_path / "file", _nothing).__enter__()
