"""Fixtures that every test file may ask for."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("seqtrain", deadline=None)
settings.load_profile("seqtrain")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that ask for it are skipped where it is absent."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SEQTRAIN_REAL_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set SEQTRAIN_REAL_DATA to the folder")
    return folder
