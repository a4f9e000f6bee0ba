"""Video: frames in order from files, the newest from cameras, and words for what is broken."""

from __future__ import annotations

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
        ("cut.avi", "cut or damaged|cannot be opened"),
    ):
        with pytest.raises(ImageError, match=words):
            list(session.stream(tmp_path / name))
    with pytest.raises(InputError, match="every 0 frames"):
        next(session.stream(film, every=0))


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
    class Hanging(Camera):
        def read(self) -> tuple[bool, Any]:
            time.sleep(0.6)
            return super().read()

    camera = Hanging(99)
    monkeypatch.setattr(video, "_open", lambda _source: camera)
    monkeypatch.setattr(video, "_LOST_S", 0.2)
    with pytest.raises(ImageError, match="is the camera connected"):
        next(session.stream(0))
