"""Video: frames in order from files, the newest from cameras, and words for what is broken."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgekd.errors import ImageError, InputError
from edgekd.runtime import video
from edgekd.runtime.session import Session, load
from tests.helpers.bundles import make_bundle, slow_down
from tests.helpers.rasters import smooth_image


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("b") / "tiny", tile_px=64, classes=3)


@pytest.fixture
def session(bundle: Path) -> Session:
    return load(bundle, streams=1)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """12 frames a second for a second; frame n begins with a grey of 10 n."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12, (96, 80))
    for number in range(12):
        image = np.ascontiguousarray(smooth_image(80, 96))
        image[:32] = 10 * number
        image[40:, :, 0], image[40:, :, 2] = 0, 255  # blue, as OpenCV orders channels: red
        writer.write(image)
    writer.release()
    return path


def test_frames_of_a_file_come_in_order(session: Session, film: Path) -> None:
    frames = list(session.stream(film))
    assert [item.number for item in frames] == list(range(12))
    for item in frames:
        assert item.image.shape == (80, 96, 3)
        assert abs(float(item.image[:24].mean()) - 10 * item.number) < 3
        assert item.image[70, :, 0].mean() > 180 > 75 > item.image[70, :, 2].mean(), "RGB"
        assert item.time_s == pytest.approx(item.number / 12, abs=0.02)
        assert (item.prediction.classes == session.run(item.image).classes).all()
    assert [item.number for item in session.stream(str(film), every=5)] == [0, 5, 10]


def test_a_stream_that_is_given_up_lets_the_file_go(session: Session, film: Path) -> None:
    frames = session.stream(film)
    assert next(frames).number == 0
    frames.close()
    film.unlink()


def test_what_cannot_be_read(session: Session, film: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.avi").touch()
    (tmp_path / "text.mp4").write_text("no film" * 100)
    content = film.read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    for name, words in (
        ("absent.mp4", "absent.mp4 does not exist"),
        ("empty.avi", "is empty"),
        ("text.mp4", "cannot be opened as video"),
        ("", "is a folder"),
        ("cut.avi", "is cut: it ends after [1-9] of 12 frames, and at least .* bytes are missing"),
    ):
        with pytest.raises(ImageError, match=words):
            list(session.stream(tmp_path / name))
    with pytest.raises(InputError, match="every 0 frames"):
        next(session.stream(film, every=0))


def written(path: Path, codec: str, frames: int = 60) -> bytes:
    """A film with some weight in each frame."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 12, (96, 80))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV writes no {codec} in {path.suffix}")
    for number in range(frames):
        writer.write(np.ascontiguousarray(smooth_image(80, 96, seed=number)))
    writer.release()
    return path.read_bytes()


def index_first(content: bytes) -> bytes:
    """An MP4 as it is made for the web: what names the frames stands before them."""
    at = content.index(b"moov") - 4
    first = content.index(b"mdat") - 4
    index = bytearray(content[at:])
    table = index.index(b"stco") + 8
    for number in range(int.from_bytes(index[table : table + 4], "big")):
        entry = slice(table + 4 * number + 4, table + 4 * number + 8)
        moved = int.from_bytes(index[entry], "big") + len(index)
        index[entry] = moved.to_bytes(4, "big")
    return content[:first] + bytes(index) + content[first:at]


def count(path: Path) -> int:
    frames = video._all(video._open(path), path, every=1)
    return sum(1 for _ in frames)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("avi", "MJPG"), ("avi", "XVID"), ("mp4", "mp4v"), ("mkv", "mp4v"), ("webm", "VP80")],
)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_cut_film_is_noticed(tmp_path: Path, suffix: str, codec: str, share: float) -> None:
    path = tmp_path / f"film.{suffix}"
    content = written(path, codec)
    assert count(path) == 60
    path.write_bytes(content[: int(share * len(content))])
    if suffix == "mp4":
        with pytest.raises(ImageError, match="cannot be opened"):
            count(path)
        content = index_first(content)
        path.write_bytes(content)
        assert count(path) == 60
        path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImageError, match=r"is cut: it ends after [1-5]?\d of 60 frames"):
        count(path)


@pytest.mark.filterwarnings("error")
def test_a_whole_film_is_not_accused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the number of frames is an estimate, it is no proof; what ends early is not told."""
    for name, codec in (("a.mkv", "mp4v"), ("a.ts", "MPG2"), ("a.webm", "VP80")):
        written(tmp_path / name, codec)
        capture = video._open(tmp_path / name)

        class Guessing:
            grab, retrieve = capture.grab, capture.retrieve

            def get(self, what: int, real: Callable[[int], float] = capture.get) -> float:
                return 75.0 if what == cv2.CAP_PROP_FRAME_COUNT else real(what)

        assert sum(1 for _ in video._all(Guessing(), tmp_path / name, 1)) == 60


def test_frames_that_an_index_names_and_nobody_gets(tmp_path: Path) -> None:
    """A trimmed film is whole, and one with a hole is not: neither can be told, so both are."""
    path = tmp_path / "a.mp4"
    content = written(path, "mp4v")
    trimmed = bytearray(content)
    at = trimmed.index(b"elst") + 12
    trimmed[at : at + 4] = (int.from_bytes(trimmed[at : at + 4], "big") // 2).to_bytes(4, "big")
    hole = bytearray(content)
    hole[len(hole) // 3 : len(hole) // 2] = bytes(len(hole) // 2 - len(hole) // 3)
    for changed in (trimmed, hole):
        path.write_bytes(changed)
        with pytest.warns(RuntimeWarning, match=r"gave \d\d of the 60 frames that it names"):
            assert 10 < count(path) < 50
    avi = written(tmp_path / "a.avi", "MJPG")
    (tmp_path / "a.avi").write_bytes(avi[:4] + b"\xff" * 4 + avi[8:])  # written to a pipe
    assert video._declared_end(tmp_path / "a.avi") == ("AVI", None)


def test_a_film_without_a_frame(film: Path) -> None:
    class Nothing:
        def grab(self) -> bool:
            return False

        def get(self, _what: int) -> float:
            return -1.0

    with pytest.raises(ImageError, match="it gives not one frame"):
        next(video._all(Nothing(), film, 1))


def test_where_a_container_says_that_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "film"
    box = b"\0\0\0\x10ftypisomisom"
    for content, expected in (
        (b"RIFF\x10\0\0\0AVI " + bytes(12) + b"RIFF\x40\0\0\0AVIX", ("AVI", 24 + 72)),
        (b"RIFF\0\0\0\0AVI ", ("AVI", None)),
        (box + b"\0\0\0\x20mdat", ("MP4", 48)),
        (box + b"\0\0\0\0mdat" + bytes(9), ("MP4", None)),  # up to the end
        (box + b"\0\0\0\1mdat\0\0\1\0\0\0\0\0" + bytes(9), ("MP4", 16 + (1 << 40))),
        (b"\x1aE\xdf\xa3\x82AB\x18S\x80g\x40\x20", ("MKV", 7 + 6 + 32)),
        (b"\x1aE\xdf\xa3\x82AB\x18S\x80g\xff", ("MKV", None)),
        (b"\x1aE\xdf\xa3", ("", None)),
        (b"G" * 188, ("", None)),
    ):
        path.write_bytes(content)
        assert video._declared_end(path) == expected, content


class Camera:
    """Gives a frame each 5 ms, and then none."""

    def __init__(self, count: int) -> None:
        self.left, self.released = count, False

    def read(self) -> tuple[bool, Any]:
        time.sleep(0.005)
        self.left -= 1
        return self.left >= 0, np.zeros((64, 64, 3), np.uint8)

    def release(self) -> None:
        self.released = True


def test_a_camera_gives_its_newest_frame(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = Camera(80)
    made: Callable[[Any], Any] = lambda _source: camera  # noqa: E731
    monkeypatch.setattr(video, "_open", made)
    slow_down(session, 0.05)
    numbers: list[int] = []
    with pytest.raises(ImageError, match="gives no frames any more"):
        for frame in session.stream(0):
            numbers.append(frame.number)
    assert len(numbers) < 20 and numbers == sorted(set(numbers)), "frames were dropped, in order"
    assert numbers[-1] >= 75 and camera.released


def test_a_camera_that_hangs_is_lost(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """In time; it is let go by its reader, when its read is over and not before."""
    begun, over = threading.Event(), threading.Event()
    releases: list[tuple[str, bool]] = []

    class Hanging(Camera):
        def read(self) -> tuple[bool, Any]:
            begun.set()
            assert over.wait(20)
            return super().read()

        def release(self) -> None:
            releases.append((threading.current_thread().name, over.is_set()))

    camera = Hanging(99)
    monkeypatch.setattr(video, "_open", lambda _source: camera)
    monkeypatch.setattr(video, "_LOST_S", 1.0)
    start = time.monotonic()
    with pytest.raises(ImageError, match="is the camera connected"):
        next(session.stream(0))
    took_s = time.monotonic() - start
    assert begun.is_set() and 0.9 < took_s < 1.9 and not releases
    readers = [item for item in threading.enumerate() if item.name == "edgekd-camera"]
    over.set()
    for reader in readers:
        reader.join(10)
        assert not reader.is_alive()
    assert releases == [("edgekd-camera", True)]


def test_a_camera_that_fails_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Camera):
        def read(self) -> tuple[bool, Any]:
            raise cv2.error("the driver is gone")

    camera = Failing(1)
    monkeypatch.setattr(threading, "excepthook", lambda _args: None)
    start = time.monotonic()
    with pytest.raises(ImageError, match="is the camera connected"):
        next(video._latest(camera, 0))
    assert time.monotonic() - start < 4 and camera.released


@pytest.mark.parametrize("share", [0.0, 0.75])
def test_a_stream_that_stalls_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Through FFmpeg, which is told how long it may wait: else for half a minute."""
    if not cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
        pytest.skip("this OpenCV has no FFmpeg")
    film = written(tmp_path / "a.ts", "MPG2")
    done = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = server.accept()
        with client:
            client.recv(4096)
            if share:
                client.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + film[: int(share * len(film))])
            done.wait(60)

    threading.Thread(target=serve, daemon=True).start()
    monkeypatch.setattr(video, "_OPEN_S", 1.0)
    monkeypatch.setattr(video, "_LOST_S", 1.0)
    url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
    start = time.monotonic()
    try:
        with pytest.raises(ImageError, match="no frames any more" if share else "cannot be opened"):
            for _ in video._latest(video._open(url), url):
                pass
        assert time.monotonic() - start < 10
        for reader in threading.enumerate():
            if reader.name == "edgekd-camera":
                reader.join(10)
                assert not reader.is_alive()
    finally:
        done.set()
        server.close()
