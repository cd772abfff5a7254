"""Progress off a terminal is a line in the log with rate and time left; on one, a bar."""

import logging
import os
import pty
import subprocess
import sys

import pytest

from catalyzer import progress as module
from catalyzer.progress import _si, progress


def test_lines_in_the_log_have_rate_and_time_left(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO, logger="catalyzer"), progress("encoding", 4000, "vectors") as advance:
        for _ in range(4):
            advance(1000)
    assert len(caplog.messages) == 3  # the end speaks for itself
    assert caplog.messages[0].startswith("encoding: 1,000 of 4,000 vectors, ")
    assert caplog.messages[0].endswith(" s left")


def test_without_a_description_nothing_is_shown(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO, logger="catalyzer"), progress(None, 10, "vectors") as advance:
        advance(5)
    assert not caplog.messages


def test_a_terminal_shows_a_bar() -> None:
    code = (
        "from catalyzer.progress import progress\n"
        "with progress('encoding', 3, 'vectors') as advance:\n"
        "    for _ in range(3): advance(1)"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # how a pseudo-terminal says that its other side is closed
        pass
    assert process.wait() == 0
    assert b"encoding" in shown
    assert b"3/3" in shown  # the end is always drawn, what is before it only from time to time
    assert b"vectors" in shown


@pytest.mark.parametrize(("rate", "text"), [(12.34, "12.3"), (1234, "1.2k"), (5.6e6, "5.6M"), (2e9, "2.0G")])
def test_rates_are_short(rate: float, text: str) -> None:
    assert _si(rate) == text
