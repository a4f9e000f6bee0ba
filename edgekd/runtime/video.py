"""Video files and cameras through OpenCV, frame by frame."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from edgekd.contracts.imageio import UInt8Array
from edgekd.errors import ImageError, InputError

if TYPE_CHECKING:
    from edgekd.runtime.session import Prediction, Session

#: seconds without a frame after which a camera is lost
_LOST_S = 5.0


@dataclass(frozen=True)
class Frame:
    """A frame and what the model says of it.

    Attributes:
        number: of the frame, from 0; numbers that are missing were dropped.
        time_s: of a file, its place in it; of a camera, seconds since the first frame, taken when
            it arrived.
        image: ``(H, W, 3)`` uint8 RGB.
        prediction: classes and confidence.
    """

    number: int
    time_s: float
    image: UInt8Array
    prediction: Prediction


def stream(
    session: Session, source: str | Path | int, every: int = 1, overlap_px: int | None = None
) -> Generator[Frame, None, None]:
    """See :meth:`edgekd.runtime.session.Session.stream`."""
    if every < 1:
        raise InputError(f"every {every} frames makes no sense; expected 1 or more")
    if session.channels != 3:
        raise InputError(f"video has 3 channels and the model takes {session.channels}")
    capture = _open(source)
    live = _is_live(source)
    frames = _latest(capture, source) if live else _all(capture, source, every)
    try:
        for number, time_s, image in frames:
            rgb = np.ascontiguousarray(image[..., ::-1])
            yield Frame(number, time_s, rgb, session.run(rgb, overlap_px))
    finally:
        frames.close()
        capture.release()


def _is_live(source: str | Path | int) -> bool:
    text = str(source)
    return isinstance(source, int) or "://" in text or "!" in text or text.startswith("/dev/video")


def _open(source: str | Path | int) -> Any:
    if isinstance(source, int):
        capture = cv2.VideoCapture(source)
    else:
        if not _is_live(source):
            path = Path(source)
            if not path.is_file():
                what = "is a folder" if path.is_dir() else "does not exist"
                raise ImageError(f"{path} {what}; give a video file or the number of a camera")
            if path.stat().st_size == 0:
                raise ImageError(f"{path} is empty (0 bytes); fetch it again")
        text = str(source)
        kind = cv2.CAP_GSTREAMER if "!" in text else cv2.CAP_ANY
        capture = cv2.VideoCapture(text, kind)
    if not capture.isOpened():
        capture.release()
        raise ImageError(
            f"{source} cannot be opened as video; expected a file or stream that this OpenCV "
            "decodes, a GStreamer pipeline, or the number of a camera"
        )
    return capture


def _all(
    capture: Any, source: object, every: int
) -> Generator[tuple[int, float, UInt8Array], None, None]:
    """Every frame of a file, or each n-th; those between are not decoded."""
    number = 0
    expected = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    while capture.grab():
        if number % every == 0:
            time_s = float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1e3
            good, image = capture.retrieve()
            if not good:
                raise ImageError(f"{source} is damaged: frame {number} cannot be decoded")
            yield number, time_s, image
        number += 1
    if number == 0 or 0 < number < expected:
        raise ImageError(
            f"{source} is cut or damaged: it ends after {number} of {max(expected, 0)} frames; "
            "fetch it again"
        )


def _latest(capture: Any, source: object) -> Generator[tuple[int, float, UInt8Array], None, None]:
    """The newest frame of a camera; what came while the model was busy is dropped."""
    fresh = threading.Condition()
    state: dict[str, Any] = {"frame": None, "ended": False, "stop": False}

    def read() -> None:
        number, start = 0, None
        while not state["stop"]:
            good, image = capture.read()
            now = time.monotonic()
            start = now if start is None else start
            with fresh:
                if not good:
                    state["ended"] = True
                    fresh.notify()
                    return
                state["frame"] = (number, now - start, image)
                fresh.notify()
            number += 1

    reader = threading.Thread(target=read, name="edgekd-camera", daemon=True)
    reader.start()
    try:
        while True:
            with fresh:
                came = fresh.wait_for(lambda: state["frame"] or state["ended"], timeout=_LOST_S)
                frame, state["frame"] = state["frame"], None
            if frame is not None:
                yield frame
            elif not came or state["ended"]:
                raise ImageError(f"{source} gives no frames any more; is the camera connected?")
    finally:
        state["stop"] = True
        reader.join(timeout=_LOST_S)
