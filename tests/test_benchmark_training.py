"""The benchmark of training: all sides train the same, a difference is an error, and what counts is counted rightly."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import benchmark_files

from peftkit.errors import PeftkitError
from peftkit.models.quiet import quiet

pytest.importorskip("peft", reason="Hugging Face peft is not installed")
ROOT = Path(__file__).resolve().parents[1]
MODULES = ("memory", "workload", "profiles", "cases", "hugging_face", "sides", "gates", "goals", "rows", "training")
METHODS = ("lora", "lora-qv", "dora", "lora-fa", "prefix", "prompt", "ia3", "qlora")


@pytest.fixture(scope="module")
def benchmark():
    """The files of the benchmark by name."""
    with benchmark_files(MODULES) as files:
        yield files


class Recorded:
    """A gate that notes what is reported."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def loaded(self) -> None:
        """Nothing to do."""

    def begin(self) -> None:
        """Nothing to do."""

    def passed(self, loss: float, norm: float) -> None:
        """Note a step."""
        self.losses.append(loss)
        self.norms.append(norm)


def case(benchmark: Any, method: str, **options: Any) -> Any:
    given = {"profile": "e2e", "precision": "fp32", "dtype": "float32", "rows": 4, "steps": 2, **options}
    return benchmark["cases"].Case(side="ours", size="tiny", method=method, **given)


@pytest.mark.parametrize("method", METHODS)
def test_the_sides_train_the_same(benchmark, method):
    cases, found = [], []
    for side in ("ours", "bare"):
        cases.append(case(benchmark, method))
        found.append(Recorded())
        with quiet():
            benchmark["sides"].SIDES[side](cases[-1], found[-1])
    cases[1] = benchmark["gates"].replace(cases[1], side="bare")
    assert len(found[0].losses) == len(found[1].losses) == 2
    assert found[0].losses[0] != found[0].losses[1]
    assert "within" in benchmark["training"].agree(cases, found)


@pytest.mark.parametrize(("figure", "what"), [("losses", "losses"), ("norms", "norms of the gradients")])
def test_another_loss_or_gradient_is_an_error(benchmark, figure, what):
    one = case(benchmark, "lora")
    other = benchmark["gates"].replace(one, side="trainer")
    mine, usual = (benchmark["gates"].Found([], [5.0, 4.0], [1.0, 1.0]) for _ in range(2))
    assert "0.0e+00" in benchmark["training"].agree([one, other], [mine, usual])
    getattr(mine, figure)[1] *= 1.01
    with pytest.raises(PeftkitError, match=rf"{what} of ours.*do not train the same"):
        benchmark["training"].agree([one, other], [mine, usual])


def test_the_sides_take_turns_and_the_table_is_written(benchmark, tmp_path, capsys):
    file = tmp_path / "table.csv"
    command = ["--sizes", "tiny", "--sides", "ours,trainer", "--rounds", "2", "--rows", "2", "--no-memory"]
    assert benchmark["training"].main([*command, "--csv", str(file)]) == 0
    rows = {row["side"]: row for row in csv.DictReader(file.open(encoding="utf-8"))}
    assert list(rows) == ["ours", "trainer"]
    assert float(rows["trainer"]["speed"]) == float(rows["ours"]["own_lora"]) == 1.0
    assert min(float(row[key]) for row in rows.values() for key in ("speed", "limit", "trained_per_s", "step_s")) > 0
    assert float(rows["ours"]["loss"]) == pytest.approx(float(rows["trainer"]["loss"]), rel=1e-5)
    assert rows["ours"]["whole"] == ""
    assert "losses of 3 steps: within" in capsys.readouterr().out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_the_peak_grows_with_the_batch(benchmark):
    sizes = [case(benchmark, "lora", rows=rows, profile="gsm8k") for rows in (1, 32)]
    few, many = benchmark["gates"].weigh_sides(sizes, 1)
    assert 0 <= few.above < many.above < many.whole


def test_a_side_that_fails_ends_the_benchmark(benchmark, capsys):
    broken = case(benchmark, "lora", dtype="float33")
    with pytest.raises(PeftkitError, match=r"ours of lora failed.*float33"):
        benchmark["gates"].weigh_sides([broken], 1)
    assert "Traceback" in capsys.readouterr().err


def test_profiles_have_the_lengths_and_repeats_of_their_data(benchmark):
    profiles = benchmark["profiles"]

    def drawn(name: str, rows: int) -> Any:
        work = profiles.draw(name, 2, rows, 1000)
        assert [batch.ids for batch in work.rows] == [batch.ids for batch in profiles.draw(name, 2, rows, 1000).rows]
        assert [len(batch) for batch in work.batches] == [rows, rows]
        return work

    plain, grouped, template = drawn("e2e", 16), drawn("e2e-grouped", 16), drawn("e2e-template", 16)
    assert all(55 <= len(row.ids) <= 80 and 25 <= row.trained <= 35 for row in plain.rows)
    # Rows that share no prompt share a first token at most, by chance.
    assert plain.tokens(0) - 4 < plain.distinct(0) <= plain.tokens(0)
    assert grouped.distinct(0) <= grouped.tokens(0) - 14 * 30
    assert template.tokens(0) - template.distinct(0) == pytest.approx(15 * 40, abs=4)
    turns, chat = drawn("coqa", 8), drawn("coqa-chat", 1)
    assert turns.trained(0) + turns.trained(1) == chat.trained(0)
    longest = max(turns.batches[0], key=lambda row: len(row.ids))
    assert turns.distinct(0) == len(longest.ids)
    assert chat.batches[0][0].ids == turns.batches[1][-1].ids
    assert all(60 <= len(row.ids) - row.trained <= 100 and 100 <= row.trained <= 130 for row in drawn("gsm8k", 4).rows)


def test_the_limit_counts_each_product_of_a_frozen_weight_twice(benchmark):
    one = case(benchmark, "lora", steps=3)
    size, work = one.measures, one.work()
    linears = sum(p.numel() for n, p in benchmark["cases"].llama(one, None).named_parameters() if "proj" in n)
    assert size.linears == linears
    operations = 4 * (linears * work.distinct(1) + 64 * 256 * work.trained(1))
    assert benchmark["training"].limits(one, 1, 1e9)[0] == pytest.approx(operations / 1e9)


def test_goals_stand_beside_what_was_reached(benchmark, capsys):
    training = benchmark["training"]
    common = {"size": "60m", "profile": "e2e", "precision": "fp32", "side": "ours", "step_s": 1.0}
    figures = {"trained_per_s": 1.0, "tokens_per_s": 1.0, "limit": 1.0}
    lora = training.Row(**common, **figures, method="lora", speed=2.2, own_lora=1.0, memory=0.5)
    dora = training.Row(**common, **figures, method="dora", speed=2.0, own_lora=1.2)
    training.print_goals([lora, dora], benchmark["goals"].CPU_GOALS)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    told = {(*line[:4], line[4]): line[-3:] for line in lines if line[:1] == ["60m"]}
    assert told["60m", "e2e", "lora", "fp32", "step"] == ["1.15", "1.00", "yes"]
    assert told["60m", "e2e", "lora", "fp32", "peak"] == ["0.45", "0.50", "no"]
    assert told["60m", "e2e", "dora", "fp32", "step"] == ["1.25", "1.20", "yes"]
    assert told["60m", "coqa", "lora", "fp32", "step"][-1] == "-"


@pytest.mark.parametrize(
    "command", [("--sizes", "60n"), ("--profiles", "e2f"), ("--methods", "lorra"), ("--sides", "trainr")]
)
def test_an_unknown_name_is_refused_with_the_nearest(benchmark, command, capsys):
    assert benchmark["training"].main(command) == 2
    assert command[1] in capsys.readouterr().err


def test_the_goals_can_be_narrowed_to_a_size_and_a_precision(benchmark):
    given = argparse.Namespace(goals=True, sizes="350m", precision="bf16", device="cpu")
    cells = benchmark["training"].cells_of(given)
    assert {(cell.size, cell.precision) for cell in cells} == {("350m", "bf16")}
    assert [cell.profile for cell in cells] == ["e2e", "e2e-grouped", "e2e-template"]
