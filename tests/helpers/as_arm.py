"""Runs a program as if this were an Arm board: ``python as_arm.py CPU SCRIPT ARGUMENT...``.

Only what is asked about the processor is made up; the arithmetic is this machine's.
"""

from __future__ import annotations

import platform
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Answer as the CPU of a target would, and run the script."""
    target, script, *arguments = sys.argv[1:]
    sys.path.insert(0, str(Path(script).parent))
    import _arm_child
    from _emulated import CPUS

    cpu = CPUS[target]
    platform.machine = lambda: "aarch64"
    _arm_child.machine = lambda: {
        "machine": "aarch64", "cpu_part": cpu.part, "cpuinfo_dot_product": cpu.dot_product,
        "hwcap_dot_product": cpu.dot_product,
    }  # fmt: skip
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
