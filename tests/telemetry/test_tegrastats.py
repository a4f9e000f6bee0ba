"""tegrastats of every generation: real lines, cut lines, other programs' lines."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.telemetry.rails import find_total
from edgekd.telemetry.tegrastats import Clocked, Damaged, Line, Rail, Reader, parse_line

LOGS = {
    "agx-orin-32gb_jp5_epochprefix-idle-basic.log": 129,
    "agx-orin-32gb_jp5_epochprefix-idle-sudo.log": 37,
    "agx-orin-64gb_jp6_epochprefix-11ms.log": 457,
    "agx-orin-64gb_jp6_epochprefix-idle-sudo.log": 56,
    "agx-xavier-16gb_jp4_epochprefix-idle-basic.log": 129,
    "agx-xavier-16gb_jp4_epochprefix-idle-sudo.log": 42,
    "orin-nano-8gb_jp6_sudo-vlm-trt-100ms.log": 661,
    "orin-nx-16gb_jp6_epochprefix-idle-basic.log": 91,
    "orin-nx-16gb_jp6_epochprefix-idle-sudo.log": 55,
    "xavier-nx-8gb_jp5_epochprefix-idle-basic.log": 127,
    "xavier-nx-8gb_jp5_epochprefix-idle-sudo.log": 56,
}
#: lines of every generation, made after those of the boards
JP3 = "RAM 1000/3995MB (lfb 10x4MB) cpu [17%,13%,off,5%]@408 EMC 1%@408 GR3D 3%@76 VDD_IN 2532/2698"
TX2 = (
    "RAM 2344/7852MB (lfb 1154x4MB) SWAP 0/3926MB (cached 0MB) CPU [1%@345,off,1%@1188/1189] "
    "EMC_FREQ 4%@1600 GR3D_FREQ 0%@624 APE 150 MTS fg 1% bg 3% PLL@37.5C PMIC@100C "
    "VDD_SYS_GPU 152/152 VDD_IN 3056/3056 VDD_SYS_CPU 152/152"
)
AGX = (
    "RAM 721/31927MB (lfb 7291x4MB) IRAM 0/252kB(lfb 252kB) CPU [2%@1190,off] EMC_FREQ 0%@665 "
    "GR3D_FREQ 0%@318 CPU@37.5C GPU 0/0 CPU 311/311 SOC 932/932 CV 0/0 VDDRQ 621/621 "
    "SYS5V 1482/1482"
)
JP6 = (
    "04-19-2026 01:31:10 RAM 519/7607MB (lfb 61x4MB) CPU [0%@1728,9%@729] EMC_FREQ @3199 "
    "GR3D_FREQ 12%@[305,306] GR3D2_FREQ 0%@0 NVENC off NVENC0_FREQ @1691 NVDEC 79%@166 "
    "NVJPG_LOAD 7% VIC_FREQ 729 OFA off cpu@48.906C cv0@-256C tj@49.5C VDD_IN 5971mW/5900mW "
    "VDD_CPU_CV -398mW/-398mW NC 0mW/0mW NC 0mW/0mW"
)
JP7 = (
    "11-02-2025 10:00:00 RAM 1/2MB (lfb 1x512kB) CPU [1%@1] GR3D_FREQ @[314,314,314] cpu@49.8C/51C "
    "VIN 87426mW/43713mW/87426mW VDD_GPU 0mW/0mW/0mW"
)


@pytest.fixture(scope="session")
def telemetry(test_data: Path) -> Path:
    return test_data / "telemetry"


def read(data: bytes) -> tuple[list[Line], Reader]:
    reader = Reader()
    lines = reader.feed(data)
    reader.close()
    return lines, reader


def test_each_token_of_each_generation() -> None:
    old, tx2, agx, jp6, jp7 = map(parse_line, (JP3, TX2, AGX, JP6, JP7))
    assert old.cores == (
        Clocked(17, (408,)),
        Clocked(13, (408,)),
        Clocked(off=True),
        Clocked(5, (408,)),
    )
    assert old.units == {"EMC": Clocked(1, (408,)), "GR3D": Clocked(3, (76,))}
    assert old.rails == {"VDD_IN": Rail(2532, 2698)}
    assert tx2.cores[2] == Clocked(1, (1188,)) and tx2.swap_total_mb == 3926
    assert tx2.temperatures_c == {"PLL": 37.5, "PMIC": 100.0}
    assert list(tx2.rails) == ["VDD_SYS_GPU", "VDD_IN", "VDD_SYS_CPU"]
    assert agx.rails["CPU"] == Rail(311, 311) and agx.temperatures_c == {"CPU": 37.5}
    assert agx.cores[1].off and (agx.ram_mb, agx.ram_total_mb) == (721, 31927)
    assert jp6.wall == dt.datetime(2026, 4, 19, 1, 31, 10)
    assert jp6.units == {
        "EMC": Clocked(None, (3199,)), "GR3D": Clocked(12, (305, 306)), "GR3D2": Clocked(0, (0,)),
        "NVENC": Clocked(off=True), "NVENC0": Clocked(None, (1691,)), "NVDEC": Clocked(79, (166,)),
        "NVJPG": Clocked(7), "VIC": Clocked(None, (729,)), "OFA": Clocked(off=True),
    }  # fmt: skip
    assert jp6.temperatures_c == {"cpu": 48.906, "tj": 49.5}, "-256 is a block that is off"
    assert jp6.rails == {"VDD_IN": Rail(5971, 5900), "VDD_CPU_CV": Rail(-398, -398)}
    assert jp7.units == {"GR3D": Clocked(None, (314, 314, 314))}
    assert jp7.temperatures_c == {"cpu": 49.8}
    assert jp7.rails == {"VIN": Rail(87426, 43713, 87426), "VDD_GPU": Rail(0, 0, 0)}
    assert not any(line.aside for line in (old, tx2, agx, jp6, jp7))
    assert tx2.understood == len(tx2.form) == 12


def test_what_is_not_known_is_set_aside_by_name() -> None:
    line = parse_line(JP6.replace("OFA off", "NVFOO 12%@3 x9 OFA off BAR@3W"))
    assert line.aside == ("NVFOO", "x9", "BAR") and line.units["OFA"].off
    assert line.rails["VDD_IN"].now_mw == 5971


def test_every_real_log_is_understood(telemetry: Path) -> None:
    found = {path.name for path in telemetry.glob("*.log")}
    assert found == set(LOGS)
    for name, count in LOGS.items():
        lines, reader = read((telemetry / name).read_bytes())
        counts = reader.counts
        assert len(lines) == counts.lines == count and not counts.damaged, name
        assert not counts.aside and not counts.restarts, name
        assert counts.understood == sum(len(line.form) for line in lines) >= 11 * count
        for line in lines:
            assert line.cores and line.units and line.temperatures_c and line.ram_total_mb, name
            assert bool(line.rails) == ("basic" not in name or "jp6" in name), name


def test_every_real_single_line_is_understood(telemetry: Path) -> None:
    text = (telemetry / "tegrastats_single_lines.txt").read_text()
    rows = [row.split("\t") for row in text.splitlines() if not row.startswith("#")]
    assert len(rows) == 8
    for name, row in rows:
        line = parse_line(row)
        assert not line.aside and find_total(line.rails), name


def forms(telemetry: Path) -> Iterator[tuple[str, str]]:
    """Each distinct form of line, and a second line that may follow it."""
    for text in (JP3, TX2, AGX, JP6, JP7):
        yield text, text
    for path in sorted(telemetry.glob("*.log")):
        seen = set()
        texts = path.read_text().splitlines()
        for text, after in itertools.pairwise(texts):
            form = parse_line(text).form
            if form == parse_line(after).form and form not in seen:
                seen.add(form)
                yield text, after


def numbers(line: Line) -> set[tuple[str, object]]:
    """All that a line says, but the means: those are no power of anything."""
    return {
        ("ram", (line.ram_mb, line.ram_total_mb)), ("wall", line.wall), ("epoch", line.epoch_s),
        *(("core", (n, core)) for n, core in enumerate(line.cores)),
        *(("unit", item) for item in line.units.items()),
        *(("zone", item) for item in line.temperatures_c.items()),
        *(("rail", (name, rail.now_mw)) for name, rail in line.rails.items()),
    }  # fmt: skip


def test_a_line_that_is_cut_anywhere_gives_no_wrong_number(telemetry: Path) -> None:
    """Without its line end it is dropped and counted. With one it is dropped, unless all that is
    left is right, which only the first line of a stream can come to."""
    count = 0
    for text, after in forms(telemetry):
        count += 1
        whole = numbers(parse_line(after))
        for end in range(1, len(after)):
            lines, reader = read(f"{text}\n{after[:end]}".encode())
            assert len(lines) == 1 and reader.counts.damaged == {"cut": 1}
            lines, reader = read(f"{text}\n{after[:end]}\n{after}\n".encode())
            if len(lines) == 2:
                assert sum(reader.counts.damaged.values()) == 1, after[:end]
            else:  # only the last mean can be short, which is published nowhere
                assert len(after) - end < 8 and numbers(lines[1]) == whole, after[:end]
            with contextlib.suppress(Damaged):
                assert numbers(parse_line(after[:end])) - whole <= {("wall", None)}, after[:end]
            lines, _ = read(f"{after[end:]}\n{after}\n".encode())
            assert len(lines) == 1 or after[end:].startswith(("RAM", after[:3])) or end < 40
            assert numbers(lines[-1]) == whole
    assert count >= 15


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Sun Apr 19 01:31:10 UTC 2026", "foreign"),
        ('{"fps": 12}', "foreign"),
        ("x" * 9999, "foreign"),
        ("\0\0\0" + JP6, "foreign"),
        (JP6[:40] + "\0" + JP6[40:], "foreign"),
        (JP6 + " " + JP6, "several in one"),
        ("99-99-2026 01:31:10 " + AGX, "foreign"),
        ("RAM", "foreign"),
        ("RAM 1/2", "cut"),
    ],
)
def test_lines_of_others(text: str, what: str) -> None:
    with pytest.raises(Damaged, match=f"^{what}$"):
        parse_line(text)
    lines, reader = read(f"{AGX}\n{text}\n\n{AGX}\n".encode())
    assert len(lines) == 2 and reader.counts.damaged == {what: 1}


@given(st.data())
def test_pieces_of_any_size_give_the_same_lines(data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    stream = "".join(f"{text}{end}" for text in (JP3, TX2, AGX, JP6, JP7)).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    reader = Reader()
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:stop])
    assert found == [parse_line(text) for text in (JP3, TX2, AGX, JP6, JP7)]


@given(st.binary(max_size=300))
def test_no_bytes_raise(data: bytes) -> None:
    _, reader = read(data + b"\n" + JP6.encode() + b"\n")
    assert reader.counts.lines == 1


def test_rails_that_are_gone_for_good_are_no_cut_lines() -> None:
    bare = JP6.partition(" VDD_IN")[0]
    lines, reader = read("\n".join([JP6, JP6, bare, JP6, bare, bare, bare, JP6, ""]).encode())
    assert [bool(line.rails) for line in lines] == [True, True, True, False, False, True]
    assert reader.counts.damaged == {"cut": 2}


def test_a_restart_is_seen_by_the_means() -> None:
    def line(now: int, mean: int) -> str:
        return f"RAM 1/2MB (lfb 1x4MB) VDD_IN {now}mW/{mean}mW VDD_SOC 100mW/100mW\n"

    steady = [line(5000, 5000), line(5100, 5050), line(5300, 5133), line(5133, 5133)]
    _, reader = read("".join(steady).encode())
    assert reader.counts.restarts == 0
    _, reader = read(
        "".join([*steady, line(7000, 7000), line(7000, 7000), line(5000, 6667)]).encode()
    )
    assert reader.counts.restarts == 1 and reader.counts.lines == 7


ORIN = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
XAVIER = ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")
THOR = ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")


@pytest.mark.parametrize(
    ("names", "rails", "scope"),
    [
        (("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"), ("POM_5V_IN",), "board"),
        (("VDD_SYS_GPU", "VDD_IN", "VDD_SYS_CPU"), ("VDD_IN",), "module"),
        (("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), ("VDD_IN",), "module"),
        (XAVIER, XAVIER, "module"),
        ((*ORIN, "VDDQ_VDD2_1V8AO"), ORIN, "module"),
        ((*THOR, "VIN"), ("VIN",), "board"),
        (THOR, THOR, "module"),
        (THOR[:2], None, None),
        (("VDD_CPU_GPU_CV",), None, None),
        ((), None, None),
    ],
)
def test_totals(names: tuple[str, ...], rails: tuple[str, ...] | None, scope: str | None) -> None:
    total = find_total(names)
    if rails is None:
        assert total is None
        return
    assert total is not None and total.rails == rails and total.scope == scope
    values = {name: 1000 * 2**place for place, name in enumerate(names)}
    assert total.watts(values) == sum(values[name] for name in rails) / 1000
    rest = {name: 1 for name in names if name != rails[-1]}
    assert total.watts(rest) is None and total.lacks(rest) == f"rail {rails[-1]} is missing"
    assert total.lacks(names) == ""


@pytest.mark.parametrize(
    ("names", "step_mw", "lag_s"),
    [
        (("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), 40, 0.45),
        (("VDD_IN", "VDD_SYS_GPU", "VDD_SYS_SOC", "VDD_SYS_CPU"), None, None),  # TX2
        (("VDD_IN", "VDD_CPU_GPU", "VDD_SOC"), None, None),  # TX2 NX
        (("VDD_IN",), None, None),
        ((*ORIN, "VDDQ_VDD2_1V8AO"), math.sqrt(400**2 + 400**2 + 100**2), None),
        (THOR, None, None),
        (("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"), None, None),
        (XAVIER, None, None),
    ],
)  # fmt: skip
def test_step_and_lag_are_those_of_the_board(
    names: tuple[str, ...], step_mw: float | None, lag_s: float | None
) -> None:
    total = find_total(names)
    assert total is not None and total.lag_s == lag_s
    assert total.step_mw == (None if step_mw is None else pytest.approx(step_mw))
