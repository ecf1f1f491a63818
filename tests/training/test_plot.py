from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.plot import draw_loss, smooth


def test_smoothing_by_hand():
    # Span 3 keeps half: 4, (4/2 + 1) / (1/2 + 1), (3/2 + 7) / (3/4 + 1).
    assert smooth([4.0, 1.0, 7.0], 3) == pytest.approx([4.0, 2.0, 8.5 / 1.75])
    assert smooth([4.0, 1.0, 7.0], 1) == [4.0, 1.0, 7.0]
    assert smooth([2.0] * 5, 9) == pytest.approx([2.0] * 5)


@pytest.mark.parametrize("count", [1, 60])
def test_picture_of_any_length_is_drawn(count: int, tmp_path: Path):
    records = [{"step": step + 1, "loss": 3.0 / (step + 1), "lr": 0.1} for step in range(count)]
    records[-1]["validation_loss"] = 2.0
    draw_loss(tmp_path / "loss.png", records, "a title")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
