"""Downloads, from a server on this machine: resumed, checked, and never unpacked elsewhere."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import needs_train  # noqa: F401
import pytest
from pairs import write

from fastclip.transfuse.data.archives import fetch, unpack
from fastclip.transfuse.data.formats import optional
from fastclip.transfuse.data.public import PUBLIC_SETS, Archive, PublicSet
from fastclip.transfuse.data.samples import DataError
from fastclip.transfuse.preparation.download import download
from fastclip.transfuse.safety.lock import FolderLock


def zipped(entries: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize(
    "name", ["../out.png", "a/../../out.png", "/tmp/out.png", "..\\out.png", "C:\\out.png"]
)
def test_a_hostile_archive_is_refused_whole(tmp_path: Path, name: str) -> None:
    file = tmp_path / "x.zip"
    file.write_bytes(zipped({"images/a.png": b"1", name: b"2"}))
    folder = tmp_path / "inner" / "set"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match=r"x\.zip holds .*leads out of its folder"):
        unpack(file, folder)
    assert list(folder.iterdir()) == []
    assert not list(tmp_path.rglob("out.png"))


def test_a_link_and_a_damaged_archive_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("images")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(info, "/etc")
    folder = tmp_path / "set"
    folder.mkdir()
    with pytest.raises(DataError, match="is no plain file"):
        unpack(tmp_path / "link.zip", folder)
    (tmp_path / "cut.zip").write_bytes(zipped({"a": b"x" * 999})[:-30])
    with pytest.raises(DataError, match=r"cut\.zip cannot be unpacked"):
        unpack(tmp_path / "cut.zip", folder)
    (tmp_path / "page.zip").write_text("<html>too many downloads</html>")
    with pytest.raises(DataError, match=r"page\.zip cannot be unpacked"):
        unpack(tmp_path / "page.zip", folder)
    (folder / "images").symlink_to(tmp_path)
    (tmp_path / "good.zip").write_bytes(zipped({"images/a.png": b"1"}))
    with pytest.raises(DataError, match="is a link"):
        unpack(tmp_path / "good.zip", folder)
    assert list(folder.iterdir()) == [folder / "images"]
    assert not (tmp_path / "a.png").exists()


def test_every_set_names_its_terms_and_its_paper() -> None:
    for public in PUBLIC_SETS.values():
        assert public.licence
        assert public.citation
        assert public.page.startswith("https://")
        assert all(archive.url.startswith("https://") for archive in public.archives)


def test_a_missing_extra_is_one_sentence() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^x needs nopackage: pip install 'fastclip-to"):
        optional("nopackage.part", "x")


class Server(ThreadingHTTPServer):
    content: dict[str, bytes]
    ranges: list[str | None]
    cut: int | None = None  # bytes after which an answer breaks off


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        body = self.server.content.get(self.path)
        if body is None:
            self.send_error(404)
            return
        etag, asked = f'"{hashlib.md5(body).hexdigest()}"', self.headers.get("Range")
        self.server.ranges.append(asked)
        first = 0
        if asked and self.headers.get("If-Range") == etag:
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if first else 200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        self.wfile.write(body[first : self.server.cut])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("pooch")
    pytest.importorskip("requests")
    found = Server(("127.0.0.1", 0), Handler)
    found.content, found.ranges = {}, []
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def url(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def test_a_set_is_fetched_unpacked_and_found(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "source" / "Kvasir-SEG", "images/{}.jpg", "masks/{}.jpg")
    files = [f for f in source.rglob("*") if f.is_file()]
    body = zipped({str(f.relative_to(tmp_path / "source")): f.read_bytes() for f in files})
    server.content["/k.zip"] = body
    digest = hashlib.sha256(body).hexdigest()
    archive = Archive(url(server, "/k.zip"), "k.zip", digest)
    public = PublicSet((archive,), "https://page", "free", "paper")
    for _ in range(2):
        assert download("k", public, tmp_path / "k") == 0
    out = capsys.readouterr().out
    assert "terms: free" in out
    assert "please cite: paper" in out
    assert "4 unsplit" in out
    assert len(server.ranges) == 1  # the second call took the file that was there


def test_a_broken_download_goes_on(tmp_path: Path, server: Server) -> None:
    body = bytes(range(256)) * 999
    server.content["/x.zip"] = body
    archive = Archive(url(server, "/x.zip"), "x.zip", hashlib.sha256(body).hexdigest())
    server.cut = 100_000
    with pytest.raises(DataError, match="the same command goes on"):
        fetch(archive, tmp_path)
    server.cut = None
    assert fetch(archive, tmp_path).read_bytes() == body
    first, second = server.ranges
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").removesuffix("-")) > 0


def test_another_file_than_expected_is_refused(tmp_path: Path, server: Server) -> None:
    server.content["/x.zip"] = b"tampered"
    with pytest.raises(DataError, match="hash"):
        fetch(Archive(url(server, "/x.zip"), "x.zip", "0" * 64), tmp_path)
    assert not (tmp_path / "x.zip").exists()
    with pytest.raises(DataError, match="404"):
        fetch(Archive(url(server, "/absent.zip"), "y.zip"), tmp_path)


def test_an_unpublished_digest_is_kept_and_checked(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content["/x.zip"] = b"first"
    archive = Archive(url(server, "/x.zip"), "x.zip")
    fetch(archive, tmp_path)
    digest = hashlib.sha256(b"first").hexdigest()
    assert f"sha256 {digest}" in capsys.readouterr().out
    (tmp_path / "x.zip").unlink()
    server.content["/x.zip"] = b"other"
    with pytest.raises(DataError, match="hash"):
        fetch(archive, tmp_path)


def test_a_second_download_into_one_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set" / "archives").mkdir(parents=True)
    lock = FolderLock(tmp_path / "set" / "archives")
    public = PublicSet((), "page", "terms", "paper")
    with pytest.raises(ValueError, match=r"archives is in use by process \d+"):
        download("some", public, tmp_path / "set")
    lock.release()
    with pytest.raises(DataError, match="no known layout"):
        download("some", public, tmp_path / "set")
    assert list((tmp_path / "set" / "archives").iterdir()) == []
