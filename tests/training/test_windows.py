from __future__ import annotations

from itertools import islice

from peftkit.training.windows import Position, count_steps, windows


class Counted:
    """Seven micro-batches in even epochs and six in odd ones."""

    def plan(self, epoch: int) -> list[list[int]]:
        return [[epoch, number] for number in range(7 - epoch % 2)]

    def collate(self, indices: list[int], pad_id: int) -> None:
        return None


def test_last_window_of_an_epoch_is_shorter():
    first = list(islice(windows(Counted(), 3, Position()), 5))
    assert [len(window.batches) for window in first] == [3, 3, 1, 3, 3]
    assert [window.after for window in first] == [(0, 3), (0, 6), (1, 0), (1, 3), (2, 0)]
    assert first[0].epochs == 3 / 7
    assert first[4].epochs == 2


def test_windows_go_on_from_any_position():
    whole = list(islice(windows(Counted(), 3, Position()), 8))
    for number, window in enumerate(whole[:5]):
        assert list(islice(windows(Counted(), 3, window.after), 3)) == whole[number + 1 : number + 4]


def test_steps_of_whole_and_broken_epochs():
    assert count_steps(Counted(), 3, 1.0, None) == 3
    assert count_steps(Counted(), 3, 2.0, None) == 3 + 2
    assert count_steps(Counted(), 3, 2.5, None) == 3 + 2 + 2
    assert count_steps(Counted(), 3, 0.01, None) == 1
    assert count_steps(Counted(), 3, None, None) == 3 + 2 + 3


def test_the_first_limit_reached_ends_the_run():
    assert count_steps(Counted(), 3, 2.0, 4) == 4
    assert count_steps(Counted(), 3, 2.0, 40) == 5
    assert count_steps(Counted(), 3, None, 40) == 40


def test_a_great_many_epochs_are_counted_quickly():
    assert count_steps(Counted(), 1, 1e9, None) == 6.5e9
