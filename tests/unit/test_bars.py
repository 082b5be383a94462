# SPDX-License-Identifier: Apache-2.0
"""Progress bars: on a terminal, and only there."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest

from cinderlite.cmd import bars


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with bars.shown() as progress:
            for done in range(8):
                progress("images", done, 7)
            progress("backups", 0, 2)
    shown = b""
    with contextlib.suppress(OSError):  # The end, once nobody has the other side.
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert b"images" in shown
    assert b"7/7" in shown
    assert b"0/2" in shown


def test_not_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with bars.shown() as progress:
        progress("images", 1, 7)
    assert capsys.readouterr() == ("", "")
