"""Shared fixtures. Real data lies outside the project; tests skip where it is absent."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A process per core (pytest-xdist): the threads of torch in each of them, and in
# the commands that the tests start, would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# a shared machine keeps no deadline; what hangs is bounded where it could
settings.register_profile("edgekd", deadline=None)
settings.load_profile("edgekd")

# the artefacts that several folders share
pytest_plugins = ["tests.helpers.line", "tests.helpers.portable", "tests.helpers.place_line"]

ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> tuple[Path, str]:
    """The folder of real test data, and why it cannot be used (empty when it can)."""
    given = os.environ.get("EDGEKD_TEST_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if folder.is_dir():
        return folder.resolve(), ""
    said = (
        f"EDGEKD_TEST_DATA={given}" if given else "EDGEKD_TEST_DATA is not set and ../shared/data"
    )
    return folder, f"{said} is no folder: real test data absent"


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """What a test sets for torch ends with it: the last bit of a sum depends on the threads."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    yield
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of the real test data, see SOURCES.md there."""
    folder, lacking = data_folder()
    if lacking:
        pytest.skip(lacking)
    return folder
