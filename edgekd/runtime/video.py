"""Video files and cameras through OpenCV, frame by frame."""

from __future__ import annotations

import threading
import time
import warnings
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
#: seconds that a stream may take to begin; OpenCV's own are 30
_OPEN_S = 15.0
#: boxes of an MP4 that are looked at
_MOST_BOXES = 1_000_000


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
        if not live:  # a camera's reader does it
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
        capture = _open_text(str(source))
    if not capture.isOpened():
        capture.release()
        raise ImageError(
            f"{source} cannot be opened as video; expected a file or stream that this OpenCV "
            "decodes, a GStreamer pipeline, or the number of a camera"
        )
    return capture


def _open_text(text: str) -> Any:
    if "!" in text:
        return cv2.VideoCapture(text, cv2.CAP_GSTREAMER)
    if "://" not in text or not cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
        return cv2.VideoCapture(text, cv2.CAP_ANY)
    # Without them a read of a stream that stalls may last for minutes. Only FFmpeg is sure to take
    # them; another that does not would not open.
    limits = {cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: _OPEN_S, cv2.CAP_PROP_READ_TIMEOUT_MSEC: _LOST_S}
    pairs = [number for key, seconds in limits.items() for number in (key, int(1e3 * seconds))]
    capture = cv2.VideoCapture(text, cv2.CAP_FFMPEG, pairs)
    if not capture.isOpened() and cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        capture = cv2.VideoCapture(text, cv2.CAP_GSTREAMER)
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
    if number == 0:
        raise ImageError(f"{source} is damaged: it gives not one frame; fetch it again")
    if number < expected:
        _explain_end(Path(str(source)), number, expected)


def _explain_end(path: Path, number: int, expected: int) -> None:
    """Raise if frames are missing because the file was cut; warn if it may be damaged.

    The number alone proves nothing: OpenCV guesses it for MKV and TS, and a trimmed MP4 or an AVI
    with gaps still names all. A cut file is longer by its own words than it is.
    """
    try:
        kind, end = _declared_end(path)
        missing = (end or 0) - path.stat().st_size
    except OSError as err:
        raise ImageError(f"{path} cannot be read any more: {err}") from err
    if missing > 0:
        raise ImageError(
            f"{path} is cut: it ends after {number} of {expected} frames, and at least "
            f"{missing:,} bytes are missing; fetch it again"
        )
    if kind in ("AVI", "MP4"):
        warnings.warn(
            f"{path} gave {number} of the {expected} frames that it names: it was trimmed or has "
            "gaps, or it is damaged",
            RuntimeWarning,
            stacklevel=2,
        )


def _declared_end(path: Path) -> tuple[str, int | None]:
    """(container, bytes that it says it has); None where it does not say."""
    size = path.stat().st_size
    with path.open("rb") as stream:

        def at(start: int, count: int) -> bytes:
            stream.seek(start)
            return stream.read(count)

        head = at(0, 64)
        end = 0
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            while at(end, 4) == b"RIFF":  # one for each GiB or so
                length = int.from_bytes(at(end + 4, 4), "little")
                if length in (0, 0xFFFFFFFF):  # written to a pipe
                    return "AVI", None
                end += 8 + length
            return "AVI", end
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            for _ in range(_MOST_BOXES):
                if end >= size:
                    return "MP4", end
                length = int.from_bytes(at(end, 4), "big")
                if length == 1:
                    length = int.from_bytes(at(end + 8, 8), "big")
                if length < 8:  # 0: up to the end
                    break
                end += length
            return "MP4", None
        if head[:4] == b"\x1aE\xdf\xa3":
            before, start = _ebml_size(head, 4)
            start += before or 0
            head = at(min(start, size), 12)
            if head[:4] == b"\x18S\x80g":
                content, first = _ebml_size(head, 4)
                return "MKV", None if content is None else start + first + content
    return "", None


def _ebml_size(content: bytes, at: int) -> tuple[int | None, int]:
    """A size of Matroska's, None where it is left open, and where it ends."""
    first = content[at] if at < len(content) else 0
    if not first:
        return None, at
    count = 9 - first.bit_length()  # of bytes: zeros before the first bit, and it
    number = int.from_bytes(content[at : at + count], "big") - (1 << 7 * count)
    return (None if number == (1 << 7 * count) - 1 else number), at + count


def _latest(capture: Any, source: object) -> Generator[tuple[int, float, UInt8Array], None, None]:
    """The newest frame of a camera; what came while the model was busy is dropped."""
    fresh = threading.Condition()
    state: dict[str, Any] = {"frame": None, "ended": False, "stop": False}

    def read() -> None:
        number, start = 0, None
        try:
            while not state["stop"]:
                good, image = capture.read()
                if not good:
                    return
                now = time.monotonic()
                start = now if start is None else start
                with fresh:
                    state["frame"] = (number, now - start, image)
                    fresh.notify()
                number += 1
        finally:
            # by nobody else: OpenCV allows no release while a read is under way
            capture.release()
            with fresh:
                state["ended"] = True
                fresh.notify()

    reader = threading.Thread(target=read, name="edgekd-camera", daemon=True)
    reader.start()
    patience_s = _LOST_S
    try:
        while True:
            with fresh:
                came = fresh.wait_for(lambda: state["frame"] or state["ended"], timeout=_LOST_S)
                frame, state["frame"] = state["frame"], None
            if frame is not None:
                yield frame
            elif not came or state["ended"]:
                patience_s = _LOST_S if came else 0.0
                raise ImageError(f"{source} gives no frames any more; is the camera connected?")
    finally:
        state["stop"] = True
        reader.join(timeout=patience_s)  # one that hangs ends, and lets go, when its read does
