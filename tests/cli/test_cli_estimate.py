"""`peft estimate` tells the memory of a run in a table or as JSON, and reads no weight for it."""

from __future__ import annotations

import json
import shutil

from peftkit.models import folder as folders

SMALL = ("train.batch_examples=2", "train.batch_tokens=null", "dataset.limit=16", "train.device=cpu")
PARTS = ["process", "weights", "optimizer", "gradients", "activations", "temporary"]


def test_the_table_has_every_part_and_the_peak(peft):
    done = peft("estimate", "quickstart", *SMALL)
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines() if line.strip()]
    assert [line[0] for line in lines if line[0] in PARTS] == PARTS
    assert any(line[0] == "peak" and "(cpu, fp32)" in " ".join(line) for line in lines)


def test_json_adds_up_and_reads_no_weight(peft, tmp_path):
    shutil.copytree(folders.find("bundled/tiny"), tmp_path / "model")
    for path in (tmp_path / "model").glob("*.safetensors"):
        path.unlink()
    done = peft("estimate", "quickstart", f"model={tmp_path / 'model'}", *SMALL, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert list(told["parts"]) == PARTS
    assert told["peak_bytes"] == sum(part["at_peak"] for part in told["parts"].values())
    assert told["micro_batch"]["rows"] == 2


def test_mistakes_are_those_of_validate(peft):
    for override in ("rnak=3", "method=lroa", "rank=100000"):
        one, other = peft("estimate", "quickstart", override), peft("validate", "quickstart", override)
        assert (one.code, one.err) == (other.code, other.err)
        assert one.code == 2
