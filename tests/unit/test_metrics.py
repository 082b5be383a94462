# SPDX-License-Identifier: Apache-2.0
"""/metrics of several processes, each of which has files of its own."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from cinderlite import metrics


def test_a_process_that_is_just_making_a_file_fails_nobody(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for process in (1, 2):
        values: Any = MmapedDict(str(tmp_path / f"counter_{process}.db"))  # type: ignore[no-untyped-call]
        key = mmap_key("made", "made_total", [], [], "Things made")
        values.write_value(key, 20.0 + process, time.time())
        values.close()
    (tmp_path / "histogram_3.db").touch()
    text, _ = metrics.exposition()
    assert text.decode().splitlines() == [
        "# HELP made_total Things made",
        "# TYPE made_total counter",
        "made_total 43.0",
    ]
