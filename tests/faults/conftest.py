"""No test of faults leaves a process behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faults.processes import end_started


@pytest.fixture(autouse=True)
def _end_started() -> Iterator[None]:
    yield
    end_started()
