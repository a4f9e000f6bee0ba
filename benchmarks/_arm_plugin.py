"""A pytest plugin for emulated processors: only the time that an example may take is lifted."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("emulated", deadline=None)
settings.load_profile("emulated")
