"""How light the package is to import: ``python benchmarks/import_time.py [--runs N] [--json]``.

Runs each command in fresh interpreters and takes the median. ``import edgekd`` is the time that
the import adds, measured inside the interpreter; ``edgekd --help`` is the whole process, from
start to end. Ends with 1 when a bound is missed or a heavy module was loaded.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import click

#: what the package promises, s.
IMPORT_BOUND_S = 0.15
HELP_BOUND_S = 0.5
HEAVY = ("torch", "onnx", "onnxruntime", "cv2", "rasterio", "tensorrt")

_IMPORT = f"""
import time
start = time.perf_counter()
import edgekd
elapsed = time.perf_counter() - start
import json, sys
print(json.dumps([elapsed, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


def time_import() -> tuple[float, list[str]]:
    """Seconds of ``import edgekd`` in a fresh interpreter, and the heavy modules it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT], check=True, capture_output=True, text=True
    )
    elapsed_s, heavy = json.loads(done.stdout)
    return float(elapsed_s), list(heavy)


def time_help() -> float:
    """Seconds of the whole process ``edgekd --help``."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "edgekd", "--help"], check=True, capture_output=True)
    return time.perf_counter() - start


@click.command()
@click.option("--runs", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(runs: int, as_json: bool) -> None:
    """Measure, print, and end with 1 when a bound is missed."""
    time_import()  # the first run compiles byte code and fills the file cache
    imports = [time_import() for _ in range(runs)]
    helps = [time_help() for _ in range(runs)]
    heavy = sorted({name for _, names in imports for name in names})
    import_s = [elapsed_s for elapsed_s, _ in imports]
    rows = [
        ("import edgekd", statistics.median(import_s), IMPORT_BOUND_S, import_s),
        ("edgekd --help", statistics.median(helps), HELP_BOUND_S, helps),
    ]
    passed = not heavy and all(median <= bound for _, median, bound, _ in rows)
    if as_json:
        values = [
            {"what": what, "median_s": median, "bound_s": bound, "runs_s": raw}
            for what, median, bound, raw in rows
        ]
        click.echo(json.dumps({"passed": passed, "heavy": heavy, "times": values}, indent=2))
    else:
        for what, median, bound, raw in rows:
            verdict = "ok" if median <= bound else "MISSED"
            click.echo(
                f"{what}  median {median:.3f} s of {len(raw)} runs "
                f"({min(raw):.3f} to {max(raw):.3f}), bound {bound:g} s  {verdict}"
            )
        click.echo(f"heavy modules loaded by import edgekd: {', '.join(heavy) or 'none'}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
