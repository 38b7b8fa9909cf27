"""What every experiment has around its mathematics: checkpoints of the right run, files that are whole or not there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiment import Checkpoint, identity, whole_files
from main import Config, main

TINY = Config(steps=20)


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path):
    file = tmp_path / "new folder" / "run"
    kept = Checkpoint(file, identity={"--lr": 0.1})
    state = dict(x=torch.arange(3.0), history={"a": [1.0, float("inf")]}, kicks=[0], best=(torch.ones(2), 3), none=None)
    kept.keep("part", lambda: state, finished=True)
    resumed = Checkpoint(resume=file, identity={"--lr": 0.1})
    there = resumed.resumed("part")
    assert torch.equal(there.pop("x"), state["x"]) and torch.equal(there.pop("best")[0], torch.ones(2))
    assert there == {"history": state["history"], "kicks": [0], "none": None}
    assert resumed.resumed("another") is None and 0 < resumed.elapsed < 100
    assert [path.name for path in file.parent.iterdir()] == ["run"]


def test_keeping_costs_little_and_stops_no_run(tmp_path, recwarn):
    kept, offers, written = Checkpoint(tmp_path / "run"), 0, []
    while len(written) < 5:
        kept.keep("part", lambda: written.append(1) or {})
        offers += 1
    assert offers > 50  # it is not written every time
    kept.file = tmp_path / "nowhere" / "run"
    kept.keep("part", dict, finished=True)
    assert "could not be written" in str(recwarn.pop().message)
    Checkpoint().keep("part", pytest.fail, finished=True)  # without a file there is nothing to do


def test_runs_of_other_flags_or_data_have_another_identity():
    edges = torch.arange(5)
    same = identity(TINY, edges)
    assert same == identity(replace(TINY, seconds=3.0, out=Path("elsewhere"), resume=Path("file")), edges.clone())
    for other in (identity(replace(TINY, lam=0.3), edges), identity(TINY, edges + 1), identity(TINY)):
        assert same != other


def test_what_is_not_its_checkpoint_is_refused(tmp_path, capsys):
    file, cut, other, old = (tmp_path / name for name in ("run", "cut", "other", "old"))
    assert main(replace(TINY, checkpoint=file, out=tmp_path / "out")) == 0
    cut.write_bytes(file.read_bytes()[:-300])
    other.write_text("not a checkpoint")
    torch.save({"weights": torch.ones(3)}, old)
    for change, word in (
        (dict(resume=cut), "not a checkpoint"),
        (dict(resume=other), "not a checkpoint"),
        (dict(resume=old), "not a checkpoint"),
        (dict(resume=tmp_path / "nowhere"), "nowhere"),
        (dict(resume=tmp_path), "directory"),
        (dict(resume=file, lam=0.03), "--lam is 0.03, and was 0.1"),
        (dict(resume=file, p=0.5), "--p is 0.5, and was 0.6"),
        (dict(checkpoint=tmp_path), "directory"),
    ):
        capsys.readouterr()
        assert main(replace(TINY, out=tmp_path / "refused", **change)) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1 and word in message
    assert not any((tmp_path / "refused").iterdir())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_files_are_whole_or_not_there(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), whole_files(tmp_path) as folder:
        (folder / "a").write_text("half")
        raise KeyError
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "b").mkdir()
    with pytest.raises(OSError), whole_files(tmp_path / "nowhere") as folder:
        (folder / "a").write_text("new")
    with whole_files(tmp_path) as folder:
        (folder / "a").write_text("new")
        (folder / "c").write_text("more")
    assert (tmp_path / "a").read_text() == "new" and {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}
