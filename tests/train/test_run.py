"""What every training run shares: learning rate, curves, folders, precision."""

from __future__ import annotations

import contextlib
import math
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgekd.errors import (
    CheckpointError,
    EdgeKDError,
    EnvironmentLacksError,
    InputError,
    OutputError,
)
from edgekd.train.checkpoint import save_torch
from edgekd.train.run import (
    Curves,
    check_finite,
    fabric_precision,
    learning_rate,
    make_room,
    only_one,
    peak_memory_mib,
    read_curves,
    together,
)
from tests.helpers.ranks import in_two_processes


@pytest.mark.parametrize(
    ("step", "warmup", "decay", "expected"),
    [
        (0, 0.1, "cosine", 0.1),
        (9, 0.1, "cosine", 1.0),
        (10, 0.1, "cosine", 1.0),
        (55, 0.1, "cosine", 0.5),
        (99, 0.1, "cosine", 0.5 * (1 + math.cos(math.pi * 89 / 90))),
        (0, 0.0, "cosine", 1.0),
        (50, 0.0, "cosine", 0.5),
        (0, 0.0, "none", 1.0),
        (99, 0.0, "none", 1.0),
        (4, 0.1, "none", 0.5),
        (99, 0.1, "none", 1.0),
    ],
)
def test_learning_rate(step: int, warmup: float, decay: str, expected: float) -> None:
    assert learning_rate(step, 100, warmup, decay) == pytest.approx(expected)


def test_curves_go_on_after_the_checkpoint(tmp_path: Path) -> None:
    with Curves(tmp_path, ["loss", "stage"]) as curves:
        for step in (1, 2, 3):
            curves.log(step, {"loss": 1 / step, "stage": "early"})
    with (tmp_path / "curves.csv").open("a") as stream:
        stream.write("4,0.2")  # killed in the middle of a line
    assert [row["step"] for row in read_curves(tmp_path / "curves.csv")] == ["1", "2", "3"]
    with Curves(tmp_path, ["loss", "stage"], after=2) as curves:
        curves.log(3, {"loss": 9.0})
    rows = read_curves(tmp_path / "curves.csv")
    assert [(row["step"], row["loss"]) for row in rows] == [
        ("1", "1.0"),
        ("2", "0.5"),
        ("3", "9.0"),
    ]
    assert rows[0]["stage"] == "early" and rows[2]["stage"] == ""
    with Curves(tmp_path, ["loss"]) as curves:  # a new run
        pass
    assert read_curves(tmp_path / "curves.csv") == []
    assert read_curves(tmp_path / "nowhere.csv") == []


def test_an_earlier_run_is_given_up_only_when_asked(tmp_path: Path) -> None:
    names = ["best.ckpt", "last.ckpt"]
    make_room(tmp_path, names, "last.ckpt", fresh=False)
    (tmp_path / "best.ckpt").touch()
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match=r"holds a run \(best.ckpt\); add --fresh"):
        make_room(tmp_path, names, "last.ckpt", fresh=False)
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(InputError, match="add --resume to go on with it"):
        make_room(tmp_path, names, "last.ckpt", fresh=False)
    make_room(tmp_path, names, "last.ckpt", fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_one_run_per_folder(tmp_path: Path) -> None:
    with (
        only_one(tmp_path / "run"),
        pytest.raises(InputError, match="another run works in"),
        only_one(tmp_path / "run"),
    ):
        pass
    with only_one(tmp_path / "run"):
        pass
    assert not list((tmp_path / "run").iterdir())


def test_precision_is_never_another_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fabric_precision("32", "cpu", "k") == "32-true"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert fabric_precision("bf16", "cpu", "k") == "bf16-mixed"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    with pytest.raises(EnvironmentLacksError, match=r"k is bf16 and this CPU has no bf16"):
        fabric_precision("bf16", "cpu", "k")
    with pytest.raises(EnvironmentLacksError, match=r"k is fp16 and this CPU has no fp16"):
        fabric_precision("fp16", "cpu", "k")


def test_peak_memory_only_rises() -> None:
    before = peak_memory_mib(torch.device("cpu"))
    block = torch.ones(64, 1 << 20)  # 256 MiB
    assert block.sum() > 0
    after = peak_memory_mib(torch.device("cpu"))
    del block
    assert after >= max(before, 256) and peak_memory_mib(torch.device("cpu")) >= after


def _work(failing: tuple[int, ...], rank: int) -> tuple[str, int | str, str]:
    def work() -> str:
        if rank == 0 and rank in failing:
            raise CheckpointError("the file is damaged")
        if rank in failing:
            raise EnvironmentLacksError("no weights here")
        return f"result {rank}"

    try:
        return "returned", together(work), ""
    except EdgeKDError as err:
        return type(err).__name__, err.exit_code, str(err)
    except SystemExit as err:
        return "SystemExit", str(err.code), ""


def _nobody_fails(rank: int) -> tuple[str, int | str, str]:
    return _work((), rank)


def _the_second_fails(rank: int) -> tuple[str, int | str, str]:
    return _work((1,), rank)


def _both_fail(rank: int) -> tuple[str, int | str, str]:
    return _work((0, 1), rank)


def test_where_one_process_fails_all_end_and_the_first_says_why() -> None:
    assert in_two_processes(_nobody_fails) == [("returned", f"result {n}", "") for n in (0, 1)]
    first, second = in_two_processes(_the_second_fails)
    assert first[:2] == ("EdgeKDError", 3) and second[:2] == ("SystemExit", "3")
    assert first[2].startswith("process 1 of 2 on ") and first[2].endswith(": no weights here")
    first, second = in_two_processes(_both_fail)
    assert first == ("CheckpointError", 2, "the file is damaged")
    assert second[:2] == ("SystemExit", "2")


def test_one_process_alone_raises_its_own_error() -> None:
    assert _work((), 0)[:2] == ("returned", "result 0")
    assert _work((0,), 0) == ("CheckpointError", 2, "the file is damaged")


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk: a file cannot grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_names_the_file_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_torch({"step": torch.tensor(1)}, path)
    with (
        files_of_at_most(1 << 20),
        pytest.raises(OutputError, match=r"last\.ckpt cannot be written"),
    ):
        save_torch({"step": torch.zeros(1 << 20)}, path)
    assert int(torch.load(path, weights_only=True)["step"]) == 1
    assert [item.name for item in tmp_path.iterdir()] == ["last.ckpt"]
    curves = Curves(tmp_path, ["loss"])
    with files_of_at_most(8), pytest.raises(OutputError, match=r"curves\.csv cannot .* --resume"):
        curves.log(1, {"loss": 0.123456789})


@pytest.mark.parametrize(
    ("values", "norm", "precision", "said"),
    [
        ({"loss": math.nan}, 1.0, "32", "the loss became nan at step 7; lower distill.lr; "),
        ({"kd": math.inf}, 1.0, "bf16", "the loss kd became inf .*, or set distill.precision: 32"),
        ({"loss": 1.1e31}, 1.0, "32", r"the loss became 1.1e\+31 at step 7"),
        ({"loss": 1.0}, math.nan, "32", "the gradient became nan"),
    ],
)
def test_what_is_not_finite_is_named(
    values: dict[str, float], norm: float, precision: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        check_finite(values, norm, 7, precision)
    check_finite({"loss": 1.0}, math.inf, 7, "fp16")
