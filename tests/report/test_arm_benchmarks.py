"""What the scripts about Arm conclude from what other programs tell them; nothing is fetched."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script by its name, as the scripts import each other."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


LOCK = """
lock-version = "1.0"

[[packages]]
name = "click"
version = "8.5.1"
wheels = [{ url = "https://a.invalid/x/click-8.5.1-py3-none-any.whl", hashes = {} }]

[[packages]]
name = "numpy"
version = "2.2.6"
sdist = { url = "https://a.invalid/x/numpy-2.2.6.tar.gz", hashes = {} }
wheels = [{ url = "https://a.invalid/x/numpy-2.2.6-cp310-cp310-WHERE.whl" }]

[[packages]]
name = "pycuda"
version = "2026.1"
sdist = { url = "https://a.invalid/x/pycuda-2026.1.tar.gz" }
"""


@pytest.mark.parametrize(
    ("where", "python", "glibc", "said"),
    [
        ("manylinux_2_17_aarch64.manylinux2014_aarch64", "3.10", (2, 35), []),
        ("manylinux_2_35_aarch64", "3.10", (2, 35), []),
        ("manylinux_2_36_aarch64", "3.10", (2, 35), ["numpy-2.2.6"]),  # needs a newer glibc
        ("manylinux_2_28_x86_64", "3.10", (2, 35), ["numpy-2.2.6"]),
        ("manylinux_2_28_aarch64", "3.11", (2, 35), ["numpy-2.2.6"]),  # cp310 on 3.11
    ],
)
def test_a_wheel_for_another_machine_is_a_fault(
    script: Any, where: str, python: str, glibc: tuple[int, int], said: list[str]
) -> None:
    wheels = script("arm_wheels")
    packages = wheels.read_lock(LOCK.replace("WHERE", where))
    assert [item.name for item in packages] == ["click", "numpy", "pycuda"]
    assert packages[1].wheel == f"numpy-2.2.6-cp310-cp310-{where}.whl"
    found = wheels.faults(packages, wheels.fitting_tags(python, glibc))
    assert len(found) == len(said) and all(map(str.startswith, found, said))


def test_what_has_no_wheel_is_a_fault_unless_it_is_known(script: Any) -> None:
    wheels = script("arm_wheels")
    packages = [wheels.Resolved("other", "1.0", ""), wheels.Resolved("pycuda", "2026.1", "")]
    tags = wheels.fitting_tags("3.10", (2, 35))
    assert wheels.faults(packages, tags) == ["other 1.0 has no wheel"]


def test_a_lock_file_that_is_not_understood_is_no_success(script: Any) -> None:
    with pytest.raises(ValueError, match="not understood"):
        script("arm_wheels").read_lock('[[packages]]\ntitle = "numpy"\n')


def test_every_image_is_resolved_with_its_own_arguments(script: Any) -> None:
    wheels = script("arm_wheels")
    images = {path.name.removesuffix(".Dockerfile") for path in ROOT.glob("docker/*.Dockerfile")}
    assert set(wheels.BASES) == images
    for image in images:
        assert wheels.build_arguments(image)["EXTRAS"].split(",")[0]
    assert wheels.build_arguments("runtime-jetson")["NUMPY"] == "numpy<2"
    assert all({"3.10", "3.11", "3.12"} <= set(base.pythons) for base in wheels.BASES.values())


REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="test_one[1]"/>
<testcase classname="tests.a" name="test_two"><failure message="AssertionError: 1 == 2"/></testcase>
<testcase classname="tests.a" name="test_three"><error message="no fixture"/></testcase>
<testcase classname="tests.b" name="test_four"><skipped message="no data"/></testcase>
</testsuite></testsuites>"""


def test_pytests_report_is_read(script: Any) -> None:
    assert script("arm_tests").read_junit(REPORT) == {
        "passed": ["tests.a::test_one[1]"],
        "failed": {
            "tests.a::test_two": "AssertionError: 1 == 2", "tests.a::test_three": "no fixture",
        },
        "skipped": {"tests.b::test_four": "no data"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("native", "arm", "holds", "missing"),
    [
        ("ab", "ab", True, []),
        ("ab", "abc", True, []),
        ("ab", "a", False, ["b"]),  # skipped, or not collected
        ("", "", False, []),  # nothing was said
    ],
)
def test_arm_must_do_all_that_x86_does(
    script: Any, native: str, arm: str, holds: bool, missing: list[str]
) -> None:
    def result(names: str) -> dict[str, Any]:
        return {"passed": list(names), "failed": {}, "skipped": {}}

    assert script("arm_tests").judge(result(native), result(arm)) == (holds, missing)


def test_a_failure_anywhere_is_a_failure(script: Any) -> None:
    judge = script("arm_tests").judge
    good = {"passed": ["a"], "failed": {}, "skipped": {}}
    bad = {"passed": ["a"], "failed": {"b": "no"}, "skipped": {}}
    assert judge(good, bad) == (False, []) and judge(bad, good) == (False, [])


def test_the_emulated_python_starts_emulated_ones(script: Any, tmp_path: Path) -> None:
    """With qemu and the interpreter made up: what is called, and from where."""
    emulated = script("_emulated")
    root = tmp_path / "root"
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "usr" / "bin" / "python3.11").touch()
    (root / "proc").mkdir()
    qemu = tmp_path / "qemu"
    qemu.write_text('#!/bin/sh\necho "$PYTHONPATH" "$@"\n')
    qemu.chmod(0o755)
    emulator = emulated.Emulator(str(qemu), root, tmp_path / "site")
    scripts = {
        cpu.model: emulator.interpreter(cpu, tmp_path) for cpu in emulated.CPUS.values()
    }  # fmt: skip
    for model, python in scripts.items():
        # PATH is empty: a test may start a Python with an environment of its own
        said = subprocess.run(
            [python, "-c", "pass"], env={"PATH": "", "PYTHONPATH": "/p"}, capture_output=True,
            text=True, check=True,
        ).stdout.split()  # fmt: skip
        assert said[0] == f"/p:{tmp_path / 'site'}"
        assert said[1:3] == ["-0", str(python)] and said[3:5] == ["-cpu", model]
        assert said[5] == "-L" and (Path(said[6]) / "usr" / "bin" / "python3.11").exists()
        assert said[-3:] == ["-S", "-c", "pass"]
        info = (Path(said[6]) / "proc" / "cpuinfo").read_text()
        assert ("asimddp" in info) == (model == "cortex-a76")
    assert list((root / "proc").iterdir()) == []  # the other CPU's facts are not there


def test_a_process_that_saw_this_computer_is_refused(script: Any) -> None:
    emulated = script("_emulated")
    cpu = emulated.CPUS["rpi4"]
    facts = {
        "machine": "aarch64", "cpu_part": "0xd08", "cpuinfo_dot_product": False,
        "hwcap_dot_product": False,
    }  # fmt: skip
    emulated.check_seen(facts, cpu)
    for change in ({"machine": "x86_64"}, {"cpu_part": "0xd0b"}, {"hwcap_dot_product": True}):
        with pytest.raises(Exception, match="the emulated process saw"):
            emulated.check_seen({**facts, **change}, cpu)


def test_sizes_are_those_of_the_files_a_package_brought(script: Any, tmp_path: Path) -> None:
    for name, length in (("a", 100), ("b", 7)):
        (tmp_path / f"{name}.py").write_bytes(b"#" * length)
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "RECORD").write_text(f"{name}.py,,\n{name}-absent.pyc,,\n")
    assert script("runtime_size").sizes(tmp_path) == {"a": 100, "b": 7}
