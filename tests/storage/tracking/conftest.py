from __future__ import annotations

import os

import pytest

from storage.store import Store
from storage.tracking.tracking import Tracking


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return Tracking.open(None, Store(str(tmp_path_factory.mktemp("runs"))), "emoji")
