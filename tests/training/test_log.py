from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.errors import PeftkitError
from peftkit.training.log import Log, read


def test_records_are_on_the_disk_at_once_with_every_bit(tmp_path: Path):
    log = Log(tmp_path / "log.jsonl")
    log.append({"step": 1, "loss": 0.1 + 0.2})
    assert read(tmp_path / "log.jsonl") == [{"step": 1, "loss": 0.30000000000000004}]
    log.close()


def test_later_records_and_a_broken_line_go_at_a_resume(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    log = Log(path, last_step=2)
    log.append({"step": 3, "again": True})
    log.close()
    assert read(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_not_a_number_is_never_written(tmp_path: Path):
    log = Log(tmp_path / "log.jsonl")
    with pytest.raises(ValueError, match="JSON compliant"):
        log.append({"step": 1, "loss": float("nan")})
    log.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk_is_told_in_a_sentence(tmp_path: Path):
    log = Log(tmp_path / "log.jsonl")
    log._file.close()
    log._file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(PeftkitError, match=r"log.jsonl: No space left"):
        log.append({"step": 1})
    with pytest.raises(PeftkitError, match=r"log.jsonl: No space left"):
        log.close()
