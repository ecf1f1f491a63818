"""Every metric: its declared figures, whatever the order of inputs, of texts that it leaves as they are."""

from __future__ import annotations

import copy
import math

import pytest

from peftkit.errors import PeftkitError
from peftkit.metrics import METRICS, UnavailableError

PREDICTIONS = ["so it is 7\n#### 7", "the answer is three red birds", "no", "a house by the river is old"]
REFERENCES = [
    ["true #### 7", "true, it is 7 #### 7"],
    ["that makes three birds, true\n#### 3"],
    ["no, false\n#### 0", "no it is not, false #### 0"],
    ["the old house stands by the river, true\n#### 12"],
]
NAMES = METRICS.names()


def scored(name: str, order: list[int]) -> dict[str, float]:
    try:
        return METRICS[name].score([PREDICTIONS[i] for i in order], [REFERENCES[i] for i in order])
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_inputs_does_not_matter(name):
    figures = scored(name, [0, 1, 2, 3])
    assert set(figures) == set(METRICS[name].keys)
    assert all(math.isfinite(figure) for figure in figures.values())
    for order in ([3, 2, 1, 0], [1, 0, 3, 2]):
        assert scored(name, order) == pytest.approx(figures, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_texts_stay_as_they_are_and_figures_the_same(name):
    before = copy.deepcopy((PREDICTIONS, REFERENCES))
    assert scored(name, [0, 1, 2, 3]) == scored(name, [0, 1, 2, 3])
    assert before == (PREDICTIONS, REFERENCES)


@pytest.mark.parametrize("name", NAMES)
def test_a_prediction_of_each_input_is_wanted(name):
    with pytest.raises(PeftkitError, match=rf"^{name}: 1 predictions and references for 2 inputs"):
        METRICS[name].score(["a"], [["a"], ["b"]])
    with pytest.raises(PeftkitError, match="nothing to score"):
        METRICS[name].score([], [])
