"""Folders: every file once, whatever kills the process, and bad ones aside with the reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from edgekd.errors import CancelledError, InputError, OutputError
from edgekd.runtime import folder
from edgekd.runtime.folder import DONE, FAILED, Tally, Wanted, run_folder, watch
from edgekd.runtime.session import Session, load
from tests.helpers.bundles import make_bundle
from tests.helpers.rasters import smooth_image, write_raster

TILE = 64
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("b") / "tiny", tile_px=TILE, classes=3)


@pytest.fixture
def session(bundle: Path) -> Session:
    return load(bundle, streams=1)


def scene(path: Path, seed: int = 0, height: int = 150) -> Path:
    return write_raster(path, np.roll(smooth_image(height, 130), seed * 7, axis=1))


def names(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir() if not item.name.startswith("."))


def quick(session: Session, tmp_path: Path, **more: object) -> Tally:
    options: dict[str, object] = {"settle_s": 0.0, "poll_s": 0.01, "once": True} | more
    return watch(session, tmp_path / "in", tmp_path / "out", Wanted(), **options)  # type: ignore[arg-type]


def test_files_are_done_moved_and_set_aside(session: Session, tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    scene(inputs / "a.tif")
    scene(inputs / "b.png", 1)
    scene(inputs / "c.tiff", 2)
    whole = scene(inputs / "cut.tif", 3).read_bytes()
    (inputs / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (inputs / "text.jpg").write_text("no picture")
    (inputs / "empty.tif").touch()
    for left in (".hidden.tif", "notes.txt", "d.tif.part"):
        (inputs / left).write_bytes(whole)
    said: list[str] = []
    tally = quick(session, tmp_path, say=said.append)
    assert names(inputs) == ["d.tif.part", "done", "failed", "notes.txt"]
    assert names(inputs / "done") == ["a.tif", "b.png", "c.tiff"]
    assert names(tmp_path / "out") == ["a.tif", "b.png.tif", "c.tiff.tif"]
    assert sorted(tally.failed) == ["cut.tif", "empty.tif", "text.jpg"] and len(tally.done) == 3
    for name, reason in tally.failed.items():
        assert (inputs / "failed" / f"{name}.txt").read_text() == reason + "\n"
        assert (inputs / "failed" / name).exists()
    assert "is empty" in tally.failed["empty.tif"] and "cut.tif" in tally.failed["cut.tif"]
    assert not [item for item in (tmp_path / "out").iterdir() if item.name.endswith(".edgekd")]
    assert sum(line.startswith("done: ") for line in said) == 3
    session.run_scene(inputs / "done" / "a.tif", tmp_path / "alone.tif")
    with rasterio.open(tmp_path / "alone.tif") as one, \
            rasterio.open(tmp_path / "out" / "a.tif") as two:  # fmt: skip
        np.testing.assert_array_equal(one.read(1), two.read(1))


def test_the_same_name_again_is_another_file(session: Session, tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    for number in range(3):
        scene(inputs / "a.tif", number)
        quick(session, tmp_path)
    assert names(tmp_path / "out") == ["a-2.tif", "a-3.tif", "a.tif"]
    assert names(inputs / "done") == ["a-2.tif", "a-3.tif", "a.tif"]


def test_killed_between_the_result_and_the_move_it_is_not_done_again(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    scene(inputs / "a.tif")

    def killed(path: Path, _folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_move", killed)
        with pytest.raises(KeyboardInterrupt):
            quick(session, tmp_path)
    assert names(inputs) == ["a.tif"] and names(tmp_path / "out") == ["a.tif"]
    before = (tmp_path / "out" / "a.tif").stat().st_mtime_ns
    monkeypatch.setattr(session, "run_scene", lambda *_: pytest.fail("it was done already"))
    assert len(quick(session, tmp_path).done) == 1
    assert (tmp_path / "out" / "a.tif").stat().st_mtime_ns == before
    assert names(inputs / "done") == ["a.tif"] and names(tmp_path / "out") == ["a.tif"]


def test_a_file_that_is_still_arriving_is_left_alone(session: Session, tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    content = scene(tmp_path / "a.tif").read_bytes()
    place = inputs / "a.tif"

    def arrive() -> None:
        with place.open("wb") as stream:
            for start in range(0, len(content), len(content) // 12 + 1):
                stream.write(content[start : start + len(content) // 12 + 1])
                stream.flush()
                time.sleep(0.1)

    sender = threading.Thread(target=arrive)
    sender.start()
    # Twenty times the sender's pause: on a busy machine it is late, and then the file is taken.
    tally = watch(session, inputs, tmp_path / "out", Wanted(), settle_s=2.0, poll_s=0.02,
                  stop=lambda: any((inputs / name / "a.tif").exists() for name in (DONE, FAILED)),
                  )  # fmt: skip
    sender.join()
    assert tally.failed == {} and tally.stopped and names(inputs / "done") == ["a.tif"]


def test_stopped_in_the_middle_of_a_file_it_goes_on_there(
    session: Session, bundle: Path, tmp_path: Path
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    scene(inputs / "a.tif", height=400)
    calls: list[int] = []
    tally = quick(session, tmp_path, stop=lambda: calls.append(1) or len(calls) > 14)
    assert tally.stopped and tally.done == [] and names(tmp_path / "out") == []
    assert (tmp_path / "out" / ".a.tif.edgekd").is_dir()
    assert len(quick(session, tmp_path).done) == 1
    tag = {"EDGEKD_SCENE": folder._identity(inputs / "done" / "a.tif")}
    session.run_scene(inputs / "done" / "a.tif", tmp_path / "alone.tif", tags=tag)
    assert (tmp_path / "alone.tif").read_bytes() == (tmp_path / "out" / "a.tif").read_bytes()


def test_a_full_disk_ends_it_and_loses_nothing(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    scene(inputs / "a.tif")

    def full(*_: object, **__: object) -> None:
        raise OutputError("m.tif cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(session, "run_scene", full)
        with pytest.raises(OutputError, match="No space left"):
            quick(session, tmp_path)
    assert names(inputs) == ["a.tif"] and names(tmp_path / "out") == []
    assert len(quick(session, tmp_path).done) == 1


def test_another_bundle_begins_anew(session: Session, tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    scene(inputs / "a.tif", height=400)
    calls: list[int] = []
    quick(session, tmp_path, stop=lambda: calls.append(1) or len(calls) > 14)
    other = make_bundle(tmp_path / "other", tile_px=TILE, classes=3, seed=5)
    with load(other, streams=1) as another:
        assert len(quick(another, tmp_path).done) == 1
        with rasterio.open(tmp_path / "out" / "a.tif") as data:
            assert data.tags()["EDGEKD_MODEL_SHA256"] == another.manifest.files["model.onnx"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "error", "words"),
    [
        ("absent", "out", InputError, "is no folder"),
        ("in", "in", InputError, "is the folder of the inputs"),
        ("in", "file", OutputError, "is a file; results go into a folder"),
    ],
)
def test_wrong_folders(
    session: Session, tmp_path: Path, inputs: str, outputs: str, error: type[Exception], words: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "file").touch()
    for function in (run_folder, watch):
        with pytest.raises(error, match=words):
            function(session, tmp_path / inputs, tmp_path / outputs, Wanted())
    with pytest.raises(InputError, match="holds no image"):
        run_folder(session, tmp_path / "in", tmp_path / "out", Wanted())


def test_one_watch_for_a_folder_of_results(session: Session, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()

    def second() -> bool:
        with pytest.raises(OutputError, match="another edgekd watch writes into"):
            quick(session, tmp_path)
        return True

    quick(session, tmp_path, once=False, stop=second)


def test_a_folder_run_once(session: Session, tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    scene(inputs / "a.tif")
    scene(inputs / "b.png", 1)
    (inputs / "c.jpg").write_text("no picture")
    wanted = Wanted(scores=True, probabilities=True, polygons=".geojson", summary=True)
    tally = run_folder(session, inputs, tmp_path / "out", wanted)
    assert names(inputs) == ["a.tif", "b.png", "c.jpg"] and list(tally.failed) == ["c.jpg"]
    assert names(tmp_path / "out") == sorted(
        f"{stem}{end}" for stem in ("a", "b.png")
        for end in (".tif", ".scores.tif", ".probabilities.tif", ".geojson", ".json")
    )  # fmt: skip


_CHILD = """
import sys
from edgekd.cli.main import main
from edgekd.runtime import session as module
from tests.helpers.bundles import slow_down
real = module.load
def load(*given, **more):
    found = real(*given, **more)
    slow_down(found, 0.02)
    return found
module.load = load
sys.exit(main(sys.argv[1:]))
"""


def test_sigterm_ends_it_cleanly_and_kill_loses_nothing(bundle: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    for number in range(6):
        scene(inputs / f"{number}.tif", number)
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _CHILD, "watch", str(bundle), str(inputs),
               str(tmp_path / "out"), "--settle", "0", "--streams", "1"]  # fmt: skip

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(root)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 300  # an emulated processor takes its time
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.005)

    done = inputs / "done"
    for kill, count in ((signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGTERM, 4)):
        process = start()
        wait(lambda count=count: done.exists() and len(names(done)) >= count)
        time.sleep(0.07)
        process.send_signal(kill)
        out, err = process.communicate(timeout=300)
        assert process.returncode == (0 if kill == signal.SIGTERM else -signal.SIGKILL), err
    assert "images done, 0 set aside" in out
    process = start()
    wait(lambda: len(names(done)) == 6)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=300) and process.returncode == 0
    assert names(tmp_path / "out") == names(done) == [f"{n}.tif" for n in range(6)]
    with load(bundle, streams=1) as session:
        for name in names(done):
            tag = {"EDGEKD_SCENE": folder._identity(done / name)}
            session.run_scene(done / name, tmp_path / "alone.tif", tags=tag)
            assert (tmp_path / "alone.tif").read_bytes() == (tmp_path / "out" / name).read_bytes()


class Killed(BaseException):
    """Ends a run as a kill does: nothing catches it."""


FULL = Wanted(scores=True, probabilities=True, polygons=".gpkg", summary=True)


@pytest.mark.parametrize(
    "where",
    ["products.write_json", "journal.discard_journal", "folder._move_to", "mapping.finish"],
)
def test_a_kill_at_the_end_loses_no_result(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The map comes last, and while a journal is there the file is not done."""
    (tmp_path / "in").mkdir()
    scene(tmp_path / "in" / "a.tif")
    watch(session, tmp_path / "in", tmp_path / "whole", FULL, settle_s=0, poll_s=0.01, once=True)
    (tmp_path / "in" / "done" / "a.tif").rename(tmp_path / "in" / "a.tif")

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"edgekd.runtime.{where}", kill)
        with pytest.raises(Killed):
            watch(session, tmp_path / "in", tmp_path / "out", FULL, settle_s=0, once=True)
    assert (tmp_path / "in" / "a.tif").exists()
    tally = watch(session, tmp_path / "in", tmp_path / "out", FULL, settle_s=0, once=True)
    assert len(tally.done) == 1 and not tally.failed
    whole = {item.name: item for item in (tmp_path / "whole").iterdir()}
    found = {item.name: item for item in (tmp_path / "out").iterdir()}
    assert set(found) == set(whole) and "a.json" in found
    for name in ("a.tif", "a.scores.tif", "a.gpkg"):
        assert found[name].read_bytes() == whole[name].read_bytes()


def test_a_fault_of_ours_in_one_file_stops_none_behind_it(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for number, name in enumerate(("a.tif", "b.tif", "c.tif")):
        os.utime(scene(tmp_path / "in" / name, number), (number, number))
    real = Session.run_scene

    def run_scene(self: Session, src: Path, *given: object, **more: object) -> object:
        if Path(src).name == "b.tif":
            raise ValueError("size must be smaller")
        return real(self, src, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "run_scene", run_scene)
    told = run_folder(session, tmp_path / "in", tmp_path / "all", Wanted())
    assert len(told.done) == 2 and list(told.failed) == ["b.tif"]
    tally = quick(session, tmp_path)
    assert names(tmp_path / "in" / "done") == ["a.tif", "c.tif"] and len(tally.done) == 2
    reason = (tmp_path / "in" / "failed" / "b.tif.txt").read_text()
    assert "unexpected ValueError: size must be smaller; this is a fault in edgekd" in reason


def test_what_lies_with_the_user_stops_a_folder(session: Session, tmp_path: Path) -> None:
    """An earlier run that did not end is no fault of the image."""
    (tmp_path / "in").mkdir()
    scene(tmp_path / "in" / "a.tif", 0, 600)
    asked: list[int] = []
    with pytest.raises(CancelledError):
        session.run_scene(
            tmp_path / "in" / "a.tif", tmp_path / "out" / "a.tif",
            cancel=lambda: asked.append(1) or len(asked) == 20,
        )  # fmt: skip
    with pytest.raises(InputError, match=r"did not end .*--resume"):
        run_folder(session, tmp_path / "in", tmp_path / "out", Wanted())
    tally = run_folder(session, tmp_path / "in", tmp_path / "out", Wanted(), resume=True)
    assert len(tally.done) == 1


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(
    session: Session, tmp_path: Path
) -> None:
    """No map of two scenes, and nothing in done that no map was made of."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    scene(inputs / "a.tif", 0, 600)
    asked = []

    def stop() -> bool:
        asked.append(1)
        if len(asked) == 20:
            scene(tmp_path / "new.tif", 3, 600).replace(inputs / "a.tif")
        return False

    said: list[str] = []
    tally = quick(session, tmp_path, stop=stop, say=said.append)
    assert len(asked) > 40 and not tally.failed
    assert any("changed while it was read" in line for line in said), said
    made = [Path(item) for item in tally.done]
    assert names(tmp_path / "out") == [made[-1].name] and len(made) == 1
    session.run_scene(inputs / "done" / "a.tif", tmp_path / "alone.tif")
    with rasterio.open(tmp_path / "alone.tif") as one, rasterio.open(made[-1]) as two:
        np.testing.assert_array_equal(one.read(1), two.read(1))


def test_a_file_that_is_only_touched_is_not_read_again(session: Session, tmp_path: Path) -> None:
    path = scene(tmp_path / "a.tif", 0, 600)
    asked = []

    def cancel() -> bool:
        asked.append(1)
        if len(asked) == 5:
            os.utime(path, (1, 1))
        return False

    session.run_scene(path, tmp_path / "m.tif", cancel=cancel)
    session.run_scene(path, tmp_path / "n.tif")
    with rasterio.open(tmp_path / "m.tif") as one, rasterio.open(tmp_path / "n.tif") as two:
        np.testing.assert_array_equal(one.read(1), two.read(1))


def test_what_lies_beside_a_file_goes_with_it(session: Session, tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    place = "10\n0\n0\n-10\n500000\n6000000\n"
    beside = {"a.tfw": place, "a.wld": place, "a.tif.aux.xml": "<PAMDataset/>",
              "a.tif.msk.ovr": "x", "b.pgw": place, "c.wld": place}  # fmt: skip
    left = ["a.txt", "b.tfw", "d.tif.part"]
    for end in ("", "-2"):
        scene(inputs / "a.tif")
        scene(inputs / "c.jpg")
        for name in ("b.png", "c.png", *left):
            (inputs / name).write_text("broken")
        for name, text in beside.items():
            (inputs / name).write_text(text)
        quick(session, tmp_path)
        assert names(inputs) == sorted([*left, "done", "failed"])
        done, failed = set(names(inputs / "done")), set(names(inputs / "failed"))
        rests = (".tif", ".tfw", ".wld", ".tif.aux.xml", ".tif.msk.ovr")
        assert {f"c{end}.jpg", *(f"a{end}{rest}" for rest in rests)} <= done
        assert {f"b{end}.png", f"b{end}.pgw", f"c{end}.png"} <= failed
        assert (f"c{end}.wld" in done) != (f"c{end}.wld" in failed)
    with rasterio.open(tmp_path / "out" / "a.tif") as data:
        assert data.transform.a == 10


def test_results_of_two_files_never_share_a_name(session: Session, tmp_path: Path) -> None:
    """``x.scores.tif`` is the map of one and the confidence of the other."""
    inputs = tmp_path / "in"
    wanted = Wanted(scores=True)
    for order in (("x.scores.tif", "x.tif"), ("x.tif", "x.scores.tif")):
        out = tmp_path / order[0]
        inputs.mkdir(exist_ok=True)
        for number, name in enumerate(order):
            os.utime(scene(inputs / name, number), (number, number))
        with pytest.raises(InputError, match=r"would both give x\.scores\.tif"):
            run_folder(session, inputs, tmp_path / "no", wanted)
        tally = watch(session, inputs, out, wanted, settle_s=0, poll_s=0.01, once=True)
        assert len(set(tally.done)) == 2 and len(names(out)) == 4
        for name in names(out):
            with rasterio.open(out / name) as data:
                assert data.descriptions == (
                    ("class",) if str(out / name) in tally.done else ("confidence",)
                )
    for name in ("a.png", "a.png.tif"):
        scene(inputs / name)
    with pytest.raises(InputError, match=r"a\.png and a\.png\.tif would both give a\.png\.tif"):
        run_folder(session, inputs, tmp_path / "no", Wanted())


def test_a_name_that_leaves_no_room_is_set_aside(session: Session, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("é" * 120 + ".tif", "n" * 250 + ".tif", "m" * 186 + ".tif"):
        scene(tmp_path / "s.tif").replace(tmp_path / "in" / name)
    tally = watch(session, tmp_path / "in", tmp_path / "out", FULL, settle_s=0, once=True)
    assert len(tally.done) == 1 and len(tally.failed) == 2
    assert len(names(tmp_path / "in" / "failed")) == 4 and names(tmp_path / "in") == [
        "done",
        "failed",
    ]
    assert "more than 190 bytes" in next(iter(tally.failed.values()))


def test_what_kills_the_process_each_time_is_set_aside(session: Session, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    scene(tmp_path / "in" / "a.tif", 0, 600)

    def stop_after(count: int) -> Callable[[], bool]:
        asked: list[int] = []

        def stop() -> bool:
            asked.append(1)
            if len(asked) == count:
                raise Killed
            return False

        return stop

    for count in [20, *[5] * 10]:  # one gets somewhere, ten die in the same row
        with pytest.raises(Killed):
            quick(session, tmp_path, stop=stop_after(count))
        assert (tmp_path / "in" / "a.tif").exists()
    tally = quick(session, tmp_path)
    assert "10 starts ended in it without getting further" in tally.failed["a.tif"]
    assert names(tmp_path / "out") == [] and names(tmp_path / "in") == ["failed"]


def test_being_stopped_often_is_no_fault(session: Session, tmp_path: Path) -> None:
    """A service that is started and stopped before a row of windows is through."""
    (tmp_path / "in").mkdir()
    scene(tmp_path / "in" / "a.tif", 0, 600)
    for count in [20, *[5] * 12]:
        asked: list[int] = []
        tally = quick(
            session, tmp_path, stop=lambda asked=asked, n=count: asked.append(1) or len(asked) >= n
        )
        assert tally.stopped and (tmp_path / "in" / "a.tif").exists()
    tally = quick(session, tmp_path)
    assert len(tally.done) == 1 and not tally.failed


@pytest.mark.parametrize("place", ["done", "failed", "done/x"])
def test_results_do_not_go_where_files_go(session: Session, tmp_path: Path, place: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="is where files go"):
        watch(session, tmp_path / "in", tmp_path / "in" / place, Wanted(), once=True)
