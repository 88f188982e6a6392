"""Downloads are resumed, verified and complete, or they say what went wrong."""

import hashlib

import pytest
from file_server import serve

from jaxplain.models.weights.download import cache_folder, download, verify

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """What a broken transfer leaves is whole chunks."""
    monkeypatch.setattr("jaxplain.models.weights.download.CHUNK", 1000)


def test_a_file_arrives_whole(tmp_path):
    with serve(CONTENT) as server:
        assert download(server.url, tmp_path / "a.pth", sha256=SHA256) == SHA256
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pth"]


def test_the_beginning_of_a_hash_is_enough(tmp_path):
    with serve(CONTENT) as server:
        assert download(server.url, tmp_path / "a.pth", sha256=SHA256[:8]) == SHA256


def test_a_missing_file_says_what_to_do(tmp_path):
    with (
        serve(CONTENT, status=404) as server,
        pytest.raises(OSError, match=r"answers 404.*put it at .*a\.pth, or pass its path"),
    ):
        download(server.url, tmp_path / "a.pth", sha256=SHA256)
    assert not (tmp_path / "a.pth").exists()
    assert len(server.asked) == 1


def test_a_wrong_hash_is_refused_and_the_file_is_gone(tmp_path):
    with (
        serve(CONTENT) as server,
        pytest.raises(ValueError, match=f"has the SHA-256 {SHA256}; expected 00000000"),
    ):
        download(server.url, tmp_path / "a.pth", sha256="00000000")
    assert list(tmp_path.iterdir()) == []


def test_a_transfer_that_breaks_goes_on_where_it_was(tmp_path):
    with serve(CONTENT, breaks=[300_000, 200_000]) as server:
        download(server.url, tmp_path / "a.pth", sha256=SHA256)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert server.asked == ["", "bytes=300000-", "bytes=500000-"]


def test_what_has_come_is_kept_for_the_next_call(tmp_path):
    with serve(CONTENT, breaks=[300_000, 1000, 1999]) as server:
        with pytest.raises(OSError, match="what has come is kept"):
            download(server.url, tmp_path / "a.pth", sha256=SHA256)
        assert (tmp_path / "a.pth.part").stat().st_size == 302_000
        download(server.url, tmp_path / "a.pth", sha256=SHA256)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=302000-"


def test_a_server_that_cannot_continue_starts_anew(tmp_path):
    (tmp_path / "a.pth.part").write_bytes(CONTENT[:1000])
    with serve(CONTENT, ranges=False) as server:
        download(server.url, tmp_path / "a.pth", sha256=SHA256)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_a_part_that_is_complete_is_taken(tmp_path):
    (tmp_path / "a.pth.part").write_bytes(CONTENT)
    with serve(CONTENT) as server:
        download(server.url, tmp_path / "a.pth", sha256=SHA256)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_a_part_of_another_file_is_found_out(tmp_path):
    (tmp_path / "a.pth.part").write_bytes(b"something else")
    with serve(CONTENT) as server:
        with pytest.raises(ValueError, match="SHA-256"):
            download(server.url, tmp_path / "a.pth", sha256=SHA256)
        download(server.url, tmp_path / "a.pth", sha256=SHA256)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_without_a_network_the_message_says_what_to_do(tmp_path):
    with serve(CONTENT) as server:
        url = server.url
    with pytest.raises(OSError, match=r"cannot download http.*Download it elsewhere and put it at"):
        download(url, tmp_path / "a.pth", sha256=SHA256)


def test_progress_is_shown_on_a_terminal_only(tmp_path, capsys, monkeypatch):
    with serve(CONTENT) as server:
        download(server.url, tmp_path / "a.pth", sha256=SHA256)
        assert capsys.readouterr().err == ""
        monkeypatch.setenv("FORCE_COLOR", "1")
        download(server.url, tmp_path / "b.pth", sha256=SHA256)
        assert "b.pth" in capsys.readouterr().err
        download(server.url, tmp_path / "c.pth", sha256=SHA256, progress=False)
    output = capsys.readouterr()
    assert output.err == output.out == ""


def test_the_cache_folder_can_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPLAIN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_verify_returns_the_whole_hash(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    assert verify(tmp_path / "a", SHA256[:8]) == SHA256
