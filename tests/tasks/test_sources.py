"""Where data come from: folder, hub or package, with subsets that lie within each other."""

from dataclasses import dataclass
from itertools import pairwise

import pytest

from peftkit.data import hub
from peftkit.data.hub import HubDataset, HubUnreachableError
from peftkit.data.subset import permutation, subset
from peftkit.errors import PeftkitError
from peftkit.tasks import TASKS, source


@dataclass(frozen=True)
class Section:
    name: str = "e2e"
    path: str | None = None
    source: str = "auto"
    fraction: float = 1.0
    limit: int | None = None
    seed: int = 0
    columns: dict[str, str] | None = None
    ignore: tuple[str, ...] | None = None
    validation: float | None = None
    system: str = "keep"


@pytest.fixture
def folder(tmp_path):
    rows = "".join(f"name[{number // 2}],Text {number}.\n" for number in range(40))
    for name in ("trainset.csv", "devset.csv", "testset_w_refs.csv"):
        (tmp_path / name).write_text("mr,ref\n" + rows)
    return tmp_path


def ids(loaded):
    return [example.id for example in loaded.examples]


def test_a_path_is_read_and_named(folder):
    loaded = source.load(Section(path=str(folder)), "train")
    assert (loaded.name, loaded.origin, loaded.task) == ("e2e", "path", TASKS["e2e"])
    assert len(loaded.examples) == 40


def test_grouped_examples_hold_all_references_in_the_order_of_the_file(folder):
    grouped = source.load(Section(path=str(folder)), "test", grouped=True).examples
    assert [example.turns[0].text for example in grouped] == [f"name[{number}]" for number in range(20)]
    assert grouped[3].references == ("Text 6.", "Text 7.")


@pytest.mark.parametrize("seed", [0, 1])
def test_smaller_subsets_of_the_training_split_lie_within_larger_ones(folder, seed):
    parts = [
        ids(source.load(Section(path=str(folder), fraction=fraction, seed=seed), "train"))
        for fraction in (0.05, 0.1, 0.5, 1.0)
    ]
    assert [len(part) for part in parts] == [2, 4, 20, 40]
    assert all(set(small) < set(large) for small, large in pairwise(parts))
    assert ids(source.load(Section(path=str(folder), limit=4, seed=seed), "train")) == parts[1]
    assert ids(source.load(Section(path=str(folder), limit=4, fraction=0.05, seed=seed), "train")) == parts[0]


def test_another_seed_draws_other_examples(folder):
    drawn = {tuple(ids(source.load(Section(path=str(folder), limit=10, seed=seed), "train"))) for seed in range(4)}
    assert len(drawn) == 4


def test_evaluation_splits_are_never_cut(folder):
    assert len(source.load(Section(path=str(folder), fraction=0.1), "test").examples) == 40


def test_the_permutation_is_a_permutation():
    assert sorted(permutation(100, 3)) == list(range(100))
    assert subset([1, 2, 3], 0.01, None, 0) in ([1], [2], [3])
    for fraction, limit in ((0.0, None), (1.5, None), (1.0, 0)):
        with pytest.raises(PeftkitError, match="allowed is"):
            subset([1], fraction, limit, 0)


@pytest.mark.parametrize(
    ("section", "split", "message"),
    [
        (Section("e2x"), "train", "'e2x' is not a data set. Did you mean 'e2e'"),
        (Section("bundled/jsonl"), "train", "is not a data set"),
        (Section(), "dev", "'dev' is not a split.*train, validation"),
        (Section(source="web"), "train", "'web' is not a source"),
        (Section(source="path"), "train", "dataset.path is missing"),
        (Section(source="hub", path="x"), "train", "leave one of them out"),
        (Section("bundled/e2e", path="x"), "train", "write `name: e2e`"),
        (Section("jsonl", source="hub"), "train", "jsonl is not on the hub"),
        (Section("jsonl"), "train", "jsonl reads your own files"),
        (Section(path="/no/such/folder"), "train", "does not exist"),
    ],
)
def test_what_cannot_be_read_is_explained(section, split, message, monkeypatch, tmp_path):
    (tmp_path / "e2e").mkdir()
    monkeypatch.setattr(source, "BUNDLED", tmp_path)
    with pytest.raises(PeftkitError, match=message):
        source.load(section, split)


def test_an_empty_split_is_an_error(tmp_path):
    (tmp_path / "trainset.csv").write_text("mr,ref\n")
    with pytest.raises(PeftkitError, match=r"the split 'train' is empty"):
        list(source.load(Section(path=str(tmp_path)), "train").examples)


def test_without_network_the_bundled_set_is_read_with_a_notice(folder, tmp_path, monkeypatch, caplog):
    bundled = tmp_path / "package"
    bundled.mkdir()
    (bundled / "e2e").symlink_to(folder)
    monkeypatch.setattr(source, "BUNDLED", bundled)
    monkeypatch.setattr(hub, "offline", lambda: False)
    monkeypatch.setattr(hub, "answers", lambda: False)
    loaded = source.load(Section(), "train")
    assert (loaded.name, loaded.origin) == ("bundled/e2e", "bundled")
    assert "cannot be reached" in caplog.text
    assert "bundled/e2e" in caplog.text
    with pytest.raises(HubUnreachableError, match="cannot be reached"):
        source.load(Section(source="hub"), "train")
    monkeypatch.setattr(source, "BUNDLED", tmp_path / "nothing")
    with pytest.raises(HubUnreachableError):
        source.load(Section(), "train")


def test_the_hub_is_asked_in_bounded_time(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub.answers() is False
    monkeypatch.setenv("HF_ENDPOINT", "no address at all")
    assert hub.answers() is False


HUB_ROWS = {
    "e2e": [{"meaning_representation": "name[Fig]", "human_reference": "Fig it is."}],
    "webnlg": [
        {
            "category": "Food",
            "size": 1,
            "eid": "1",
            "modified_triple_sets": {"mtriple_set": [["Fig | country | Peru"]]},
            "lex": {
                "comment": ["good", "good"],
                "lid": ["1", "2"],
                "text": ["From Peru.", "Peruvian."],
                "lang": ["", ""],
            },
            "test_category": category,
        }
        for category in ("testdata_with_lex", "testdata_unseen_with_lex")
    ],
    "gsm8k": [{"question": f"{number}+1?", "answer": f"#### {number + 1}"} for number in range(30)],
    "coqa": [
        {
            "source": "wikipedia",
            "story": "Ann has a cat.",
            "questions": ["Who?", "What?"],
            "answers": {"input_text": ["Ann", "a cat"], "answer_start": [0, 8], "answer_end": [3, 13]},
        }
    ],
}
FROM_HUB = {
    "e2e": [("name[Fig]", "Fig it is.")],
    "webnlg": [("Fig | country | Peru", "From Peru."), ("Fig | country | Peru", "Peruvian.")],
    "gsm8k": [(f"{number}+1?", f"#### {number + 1}") for number in range(30)],
    "coqa": [
        ("Ann has a cat.\n\nQ: Who?\nA:", "Ann"),
        ("Ann has a cat.\n\nQ: Who?\nA: Ann\nQ: What?\nA:", "a cat"),
    ],
}


@pytest.mark.parametrize("name", HUB_ROWS)
def test_rows_of_the_hub_give_the_same_examples_as_files(name, monkeypatch):
    asked = []

    def records(self, split):
        asked.append((self.id, self.splits.get(split, split)))
        return iter(HUB_ROWS[name])

    monkeypatch.setattr(HubDataset, "records", records)
    loaded = source.load(Section(name, source="hub"), "test")
    assert [(example.turns[0].text, example.turns[-1].text) for example in loaded.examples] == FROM_HUB[name]
    assert (loaded.name, loaded.origin) == (name, "hub")
    assert asked == [(TASKS[name].hub.id, "validation" if name == "coqa" else "test")]


@pytest.mark.parametrize("name", HUB_ROWS)
def test_rows_of_the_hub_without_the_columns_are_explained(name):
    with pytest.raises(PeftkitError, match="row 0"):
        TASKS[name].from_records([{"something": "else"}], "train")


def test_a_data_set_published_as_a_script_is_read_from_its_converted_copy(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config, *, split, revision):
        asked.append(revision)
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported")
        return [{"meaning_representation": "a", "human_reference": "b"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(list(HubDataset("some/set").records("train"))) == 1
    assert asked == [None, hub.CONVERTED]


def test_faults_of_the_hub_are_errors_of_ours(monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("no such data set")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "offline", lambda: False)
    monkeypatch.setattr(hub, "answers", lambda: True)
    with pytest.raises(PeftkitError, match=r"some/set, split train.*no such data set") as caught:
        list(HubDataset("some/set").records("train"))
    assert not isinstance(caught.value, HubUnreachableError)
