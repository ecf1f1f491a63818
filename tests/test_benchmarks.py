"""The benchmark of methods runs, compares with LoRA and writes its table; how long a step takes is not asserted."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
from benchmark_files import benchmark_files

from peftkit.errors import PeftkitError

ROOT = Path(__file__).resolve().parents[1]
SMALLEST = ("--rounds", "1", "--width", "64", "--layers", "1", "--rows", "1", "--length", "8")
MODULES = ("methods", "memory", "workload", "generation", "together", "cases", "profiles")


@pytest.fixture(scope="module")
def benchmark():
    """The files of the benchmark by name."""
    with benchmark_files(MODULES) as files:
        yield files


def test_it_compares_with_lora_in_a_table_and_in_the_csv_asked_for(benchmark, tmp_path, capsys):
    file = tmp_path / "table.csv"
    command = ["--methods", "dora,lora-fa", *SMALLEST, "--no-memory", "--csv", str(file)]
    assert benchmark["methods"].main(command) == 0
    rows = {row["method"]: row for row in csv.DictReader(file.open(encoding="utf-8"))}
    assert list(rows) == ["lora", "dora", "lora targets=linear", "dora targets=linear", "lora-fa"]
    assert float(rows["lora"]["time_ratio"]) == 1.0
    for row in rows.values():
        assert float(row["time_ratio"]) == float(row["seconds"]) / float(rows["lora"]["seconds"]) > 0
        assert row["peak"] == row["peak_ratio"] == ""
    # One layer of width 64 at rank 8 on q and v; lora-fa trains B alone.
    assert (rows["lora"]["trainable"], rows["lora-fa"]["trainable"]) == ("2048", "1024")
    printed = capsys.readouterr().out
    assert "dora / lora on q,v: step time" in printed
    assert "dora / lora on linear: step time" in printed
    assert printed.count("lora-fa   dropout") == 2


def test_memory_fills_the_ratios(benchmark):
    rows = [benchmark["methods"].Row(name, 1, 1.0) for name in ("lora", "dora")]
    benchmark["methods"].finish(rows, [(200, 100), (300, 125)])
    assert [(row.peak_ratio, row.above_ratio) for row in rows] == [(1.0, 1.0), (1.5, 1.25)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_the_peak_grows_with_the_batch(benchmark, monkeypatch):
    work, memory = benchmark["workload"], benchmark["memory"]
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    sizes = (work.Size(None, 64, 1, rows, 256) for rows in (1, 32))
    # In processes of their own: this one may have memory to use again.
    few, many = (memory.measure_memory([work.Case("lora")], size)[0][1] for size in sizes)
    assert 0 <= few < many


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_lora_fa_saves_fewer_bytes_than_lora(benchmark, dropout):
    work = benchmark["workload"]
    size = work.Size(None, 64, 1, 2, 16)
    loaded = work.load_model(size)
    lora, thin = (
        benchmark["memory"].saved_bytes(work.Case(name, {"dropout": dropout}), loaded, size)
        for name in ("lora", "lora-fa")
    )
    # Of 32 tokens in fp32 LoRA keeps x of width 64 for A, and what both keep is A x of rank 8.
    assert lora[0] - thin[0] >= 32 * 64 * 4
    assert thin[1] < lora[1]


def test_an_unknown_method_is_refused(benchmark, capsys):
    assert benchmark["methods"].main(["--methods", "lora,lorra", *SMALLEST, "--no-memory"]) == 2
    told = capsys.readouterr().err
    assert "lorra" in told
    assert "lora" in told.replace("lorra", "")


def test_sizes_below_one_are_refused(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark["methods"].main(["--rounds", "0"])
    assert "at least 1" in capsys.readouterr().err


def test_generation_tells_what_comes_of_what_and_the_texts_are_equal(benchmark, tmp_path, capsys):
    file = tmp_path / "generation.csv"
    command = ["--steps", "1", "--rounds", "1", "--limit", "6", "--batch-size", "4", "--csv", str(file)]
    assert benchmark["generation"].main(command) == 0
    rows = list(csv.DictReader(file.open(encoding="utf-8")))
    assert [row["candidate"].split(", ")[-1] for row in rows] == ["each row", "distinct", "merged", "peft eval"]
    assert {row["equal"] for row in rows} == {"6"}
    assert "of which the decoder alone" in capsys.readouterr().out


def test_runs_together_are_measured_beside_one_after_another(benchmark, capsys):
    command = ["--jobs", "2", "--sizes", "tiny", "--rounds", "1", "--steps", "1", "--precision", "fp32"]
    assert benchmark["together"].main(command) == 0
    assert "tiny e2e fp32, 2 jobs of 2 rows: one after another" in capsys.readouterr().out


def test_other_losses_end_the_measurement_of_runs_together(benchmark):
    one, other = (benchmark["together"].Report([1.0], [[2.0, loss]]) for loss in (3.0, 3.1))
    assert benchmark["together"].agree(one, one, 1e-4) == 0
    with pytest.raises(PeftkitError, match=r"the losses of the sides lie 1\.0e-01 apart"):
        benchmark["together"].agree(one, other, 1e-4)
