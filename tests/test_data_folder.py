"""Where real test data is looked for, and what is said when it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT, data_folder


def test_the_variable_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKD_TEST_DATA", str(tmp_path))
    assert data_folder() == (tmp_path, "")
    monkeypatch.setenv("EDGEKD_TEST_DATA", str(tmp_path / "absent"))
    folder, lacking = data_folder()
    assert folder == tmp_path / "absent" and "is no folder: real test data absent" in lacking
    assert str(tmp_path / "absent") in lacking


def test_the_default_stands_beside_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKD_TEST_DATA", raising=False)
    folder, _ = data_folder()
    assert folder == (ROOT.parent / "shared" / "data").resolve()
