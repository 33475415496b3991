"""A folder that writes small files."""

from pathlib import Path

import pytest
from prepared_data import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)
