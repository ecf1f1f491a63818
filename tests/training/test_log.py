from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.errors import PeftkitError
from peftkit.training.log import Log, kept, read


def test_records_are_on_the_disk_at_once_with_every_bit(tmp_path: Path):
    log = Log(tmp_path / "log.jsonl")
    log.append({"step": 1, "loss": 0.1 + 0.2})
    assert read(tmp_path / "log.jsonl") == [{"step": 1, "loss": 0.30000000000000004}]
    log.close()


def test_later_records_and_a_broken_line_go_at_a_resume(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    log = Log(path, kept(path, 2))
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


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "lacks the record of step 1"),
        ('{"step": 1}\n{"step": 3}\n', "lacks the record of step 2"),
        ('{"step": 1}\n{"step": 2}\n{"step": 3, "lo', "lacks the record of step 3"),
        ('{"step": 1}\n{"st\n{"step": 3}\n', "line 2: not valid JSON"),
        ('{"step": 1}\n[2]\n{"step": 3}\n', "line 2: this is no record of a step"),
        ('{"step": 1}\n{"step": true}\n{"step": 3}\n', "line 2: this is no record of a step"),
        ("[" * 100_000 + "\n", "line 1: JSON nested too deeply"),
    ],
)
def test_a_log_that_lacks_steps_is_refused(content: str, fault: str, tmp_path: Path):
    (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(PeftkitError, match=rf"log.jsonl.* {fault}|log.jsonl, {fault}"):
        kept(tmp_path / "log.jsonl", 3)


def test_separators_of_unicode_end_no_line(tmp_path: Path):
    log = Log(tmp_path / "log.jsonl")
    log.append({"step": 1, "text": "a\u2028b\u2029c\x85d"})
    log.close()
    assert kept(tmp_path / "log.jsonl", 1) == [{"step": 1, "text": "a\u2028b\u2029c\x85d"}]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_log_that_goes_while_it_is_written_is_told(replaced: bool, tmp_path: Path):
    log = Log(tmp_path / "log.jsonl")
    log.append({"step": 1})
    (tmp_path / "log.jsonl").unlink()
    if replaced:
        (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    for write in (lambda: log.append({"step": 2}), log.content):
        with pytest.raises(PeftkitError, match=r"log.jsonl was removed or replaced while the run was going on"):
            write()
    log.close()


def test_what_a_log_holds_is_what_was_written(tmp_path: Path):
    log = Log(tmp_path / "log.jsonl", [{"step": 1}])
    log.append({"step": 2})
    assert log.content() == b'{"step": 1}\n{"step": 2}\n'
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3}\n')
    with pytest.raises(PeftkitError, match="removed or replaced"):
        log.content()
    log.close()
