"""Downloads from a server of this process: broken off and continued, changed, damaged, slow."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dataset_layouts import random_images, registered, write_cifar10, write_parts
from sgdphases.datasets import cifar5m, official, prepare, progress
from sgdphases.datasets.fetching import CHUNK_BYTES, MOST_ATTEMPTS, PublishedFile, fetch
from sgdphases.datasets.progress import Progress, format_bytes, telling_growth
from sgdphases.datasets.work_folder import WorkFolder
from sgdphases.errors import InputError

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server(ThreadingHTTPServer):
    """Serves files; `breaks` tells after how many bytes the next answers break off."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.folder: Path | None = None  # of further files
        self.breaks: list[int] = []
        self.knows_ranges = True
        self.requests: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers))
        content, start = self.server.content, 0
        if self.server.folder is not None:
            content = (self.server.folder / Path(self.path).name).read_bytes()
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        asked = self.headers.get("Range")
        if asked and self.server.knows_ranges and self.headers.get("If-Range") == tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if "missing" in self.path:
            self.send_error(404)
            return
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        stop = start + self.server.breaks.pop(0) if self.server.breaks else len(content)
        self.wfile.write(content[start:stop])

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    work = WorkFolder("mine", tmp_path / ".mine.partial")
    work.open({})
    return work


def published(server: Server, content: bytes = CONTENT) -> PublishedFile:
    checksum = hashlib.sha256(content).hexdigest()
    return PublishedFile(("data.bin",), server.url, len(content), checksum)


def start_of(request: dict[str, str]) -> int:
    return int(request.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


def test_download_needs_no_credentials(
    server: Server, work: WorkFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    [path] = fetch([published(server)], work, None)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in work.downloads.iterdir()] == ["data.bin"]
    assert "Authorization" not in server.requests[0]


def test_file_in_the_users_folder_comes_first(
    server: Server, work: WorkFolder, tmp_path: Path
) -> None:
    (tmp_path / "data.bin").write_bytes(CONTENT)
    assert fetch([published(server)], work, tmp_path) == [tmp_path / "data.bin"]
    assert server.requests == []


def test_broken_download_is_continued_at_once(server: Server, work: WorkFolder) -> None:
    server.breaks = [1_000_000, 500_000]
    [path] = fetch([published(server)], work, None)
    assert path.read_bytes() == CONTENT
    starts = [start_of(request) for request in server.requests]
    assert starts[0] == 0
    # At most a chunk is lost each time.
    assert 1_000_000 - CHUNK_BYTES <= starts[1] <= 1_000_000
    assert starts[1] + 500_000 - CHUNK_BYTES <= starts[2] <= starts[1] + 500_000


def test_download_is_continued_by_the_next_attempt(server: Server, work: WorkFolder) -> None:
    server.breaks = [2_000_000, *[0] * MOST_ATTEMPTS]
    with pytest.raises(InputError) as caught:
        fetch([published(server)], work, None)
    message = str(caught.value)
    assert "data.bin missing (no manual_dir given) and no network" in message
    assert "download stopped after 2.0 MB" in message
    begun = (work.downloads / "data.bin.part").stat().st_size
    assert server.url in message
    work.close()
    server.breaks, server.requests = [], []
    work.open({"another": "definition"})  # downloads do not depend on it
    [path] = fetch([published(server)], work, None)
    assert path.read_bytes() == CONTENT
    assert start_of(server.requests[0]) == begun > 1_900_000
    work.close()
    work.open({})
    assert fetch([published(server)], work, None) == [path]
    assert len(server.requests) == 1


@pytest.mark.parametrize("reason", ["file has changed", "server knows no ranges"])
def test_download_starts_over(reason: str, server: Server, work: WorkFolder) -> None:
    server.breaks = [2_000_000, *[0] * MOST_ATTEMPTS]
    with pytest.raises(InputError):
        fetch([published(server)], work, None)
    server.breaks = []
    if reason == "file has changed":
        server.content = CONTENT[::-1]
    else:
        server.knows_ranges = False
    [path] = fetch([published(server, server.content)], work, None)
    assert path.read_bytes() == server.content


def test_wrong_download_is_thrown_away(server: Server, work: WorkFolder) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(InputError, match="wrong content: SHA-256"):
        fetch([published(server, CONTENT[:-1] + b"y")], work, None)
    server.content = CONTENT[:100]
    with pytest.raises(InputError, match="truncated: 100 bytes found, 3000000 expected"):
        fetch([published(server)], work, None)
    assert list(work.downloads.iterdir()) == []


def test_absent_file_and_absent_server(server: Server, work: WorkFolder, tmp_path: Path) -> None:
    absent = PublishedFile(("a.bin",), server.url.replace("data", "missing"))
    nowhere = PublishedFile(("b.bin",), "http://127.0.0.1:9/b.bin")
    with pytest.raises(InputError) as caught:
        fetch([absent, nowhere], work, tmp_path)
    message = str(caught.value)
    assert "404" in message
    for part in ("a.bin, b.bin missing", f"not in {tmp_path}", absent.url, nowhere.url):
        assert part in message
    with pytest.raises(InputError, match=r"b\.bin missing .* and no network"):
        fetch([nowhere], work, tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        fetch([absent], work, tmp_path / "nowhere")


def test_broken_downloads_of_a_builder_do_not_pile_up(server: Server, work: WorkFolder) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    finished = work.downloads / "tfds" / "mine" / "finished.zip"
    of_a_killed_attempt = work.downloads / "tfds" / "mine" / "data.bin.tmp.0a1b" / "data.bin"

    class Builder:
        info = SimpleNamespace(dataset_size=0)

        def download_and_prepare(self, download_dir: Path, download_config: object) -> None:
            assert not of_a_killed_attempt.exists()
            server.breaks = [1000]
            manager = tfds.download.DownloadManager(download_dir=download_dir, dataset_name="mine")
            manager.download(server.url)

    of_a_killed_attempt.parent.mkdir(parents=True)
    of_a_killed_attempt.write_bytes(b"begun")
    for files in ([], [finished]):
        for file in files:
            file.parent.mkdir(parents=True)
            file.write_bytes(b"whole")
        with pytest.raises(InputError, match="dataset mine: download failed"):
            official._download_and_prepare(tfds, Builder(), "mine", work, None)
        assert [path for path in work.downloads.rglob("*") if path.is_file()] == files
    assert finished.parent.parent.exists()


def test_download_must_fit(
    server: Server, work: WorkFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match=r"no space: 3\.0 MB needed, 1\.0 kB free"):
        fetch([published(server)], work, None)


def test_cifar5m_over_the_network(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part after part, each deleted when it is read, and continued where the network broke."""
    server.folder = tmp_path / "published"
    server.folder.mkdir()
    images, labels = random_images(600)
    write_parts(server.folder, images, labels)
    archive = write_cifar10(server.folder, (images, labels), (images[:20], labels[:20]))
    address = server.url.removesuffix("data.bin")
    parts = [replace(part, url=f"{address}{part.names[0]}") for part in cifar5m.PARTS]
    cifar10 = registered(cifar5m.CIFAR10, archive)
    monkeypatch.setattr(cifar5m, "PARTS", parts)
    monkeypatch.setattr(cifar5m, "CIFAR10", replace(cifar10, url=f"{address}{archive.name}"))
    monkeypatch.setattr(cifar5m, "NUM_TEST", 20)
    work_dir = tmp_path / ".cifar5m.partial"
    everything = 10**9
    server.breaks = [everything] * 4 + [200_000] + [0] * MOST_ATTEMPTS
    with pytest.raises(InputError, match=r"part3\.npz missing .* no network"):
        prepare("cifar5m", {"source": "cifar5m"}, tmp_path / "out", None)
    assert len(json.loads((work_dir / "journal.json").read_text())) == 3
    kept = {path.name for path in (work_dir / "downloads").iterdir()}
    assert kept == {archive.name, "part3.npz.part", "part3.npz.part.etag"}
    server.breaks, server.requests = [], []
    prepare("cifar5m", {"source": "cifar5m"}, tmp_path / "out", None)
    starts = [start_of(request) for request in server.requests]
    assert 200_000 - CHUNK_BYTES <= starts[0] <= 200_000
    assert starts[1:] == [0, 0]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "train_inputs.npy"), images)
    assert not work_dir.exists()
    # What came damaged is not kept, though no checksum of it is known.
    whole = (server.folder / "part4.npz").read_bytes()
    damaged = bytearray(whole)
    damaged[9000] ^= 1
    (server.folder / "part4.npz").write_bytes(damaged)
    with pytest.raises(InputError, match=r"part4\.npz: X is damaged: Bad CRC"):
        prepare("cifar5m", {"source": "cifar5m"}, tmp_path / "again", None)
    (server.folder / "part4.npz").write_bytes(whole)
    prepare("cifar5m", {"source": "cifar5m"}, tmp_path / "again", None)
    np.testing.assert_array_equal(np.load(tmp_path / "again" / "train_inputs.npy"), images)


# --- lines of progress -----------------------------------------------------------------------


def test_lines_of_progress(
    server: Server,
    work: WorkFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    with caplog.at_level("INFO", "sgdphases"):
        fetch([published(server)], work, None)
    assert caplog.messages[0] == "mine: downloading data.bin (no manual_dir given)"
    downloading = [line for line in caplog.messages if line.startswith("data.bin: downloading")]
    assert len(downloading) == -(-len(CONTENT) // CHUNK_BYTES)
    assert "65.5 kB of 3.0 MB, " in downloading[0]
    assert downloading[-1].endswith("0:00:00 left")


def test_progress_tells_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter([0.0, 4.0, 10.0, 12.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level("INFO", "sgdphases"):
        counter = Progress("reading", 100, done=10)
        for done in (20, 30, 40, 60):
            counter.update(done)
    assert caplog.messages == [
        "reading: 30 of 100 samples, 2 samples/s, 0:00:35 left",
        "reading: 60 of 100 samples, 2.5 samples/s, 0:00:16 left",
    ]


def test_growth_of_a_folder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    (tmp_path / "records").write_bytes(bytes(2_500_000))
    told = threading.Event()
    monkeypatch.setattr(progress.logger, "info", lambda *args: (messages.append(args), told.set()))
    messages: list[tuple[object, ...]] = []
    with telling_growth("writing", tmp_path):
        assert told.wait(5)
    assert messages[0] == ("%s: %s so far", "writing", "2.5 MB")


def test_amounts() -> None:
    amounts = [format_bytes(n) for n in (0, 999, 1500, 248_100_043, 18_430_000_000, 2.004e14)]
    assert amounts == ["0 bytes", "999 bytes", "1.5 kB", "248 MB", "18.4 GB", "200.4 TB"]
