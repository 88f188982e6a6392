"""Files appear whole or not at all."""

import os

import pytest

from jaxplain.outputs import check_writable, replacing


def test_looking_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file_name(tmp_path):
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        check_writable(tmp_path)


def test_a_device_or_a_pipe_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match="a device or a pipe"):
        check_writable(pipe)
    with pytest.raises(FileExistsError, match="a device or a pipe"), replacing(pipe):
        pass
    assert pipe.is_fifo()
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_what_a_link_leads_to_is_written_and_the_link_stays(tmp_path):
    link, path = tmp_path / "link.html", tmp_path / "there" / "report.html"
    link.symlink_to(path)
    for text in ("first", "second"):
        with replacing(check_writable(link)) as part:
            part.write_text(text)
        assert path.read_text() == text
    assert link.is_symlink()
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").write_text("file")
    with pytest.raises(NotADirectoryError, match="is a file"):
        check_writable(tmp_path / "a" / "report.html")


def test_a_folder_that_refuses_files_is_named(tmp_path, monkeypatch):
    # Nothing is forbidden to root, so the refusal is played.
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(
        PermissionError, match=rf"{tmp_path.name}' refuses new files \(Permission denied\)"
    ):
        check_writable(tmp_path / "report.html")


def test_what_fails_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with replacing(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_names_as_long_as_the_system_allows_can_be_written(tmp_path):
    path = tmp_path / ("x" * 250 + ".html")
    with replacing(check_writable(path)) as part:
        part.write_text("whole")
    assert path.read_text() == "whole"
