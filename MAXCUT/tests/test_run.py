"""What every run has around its mathematics: checkpoints of the right run, files that are whole or not there."""

import os
import signal
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pytest
import torch
from matplotlib.figure import Figure
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

import run
from main import Config, main
from pgd import PGD
from run import Checkpoint, Descent, held, save_figure, threads, whole_files

TINY = Config(steps=20)


def test_ctrl_c_is_held_up_while_the_block_runs_and_only_then():
    with held() as pressed:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert pressed == [signal.SIGINT] * 2
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_ctrl_c_while_a_checkpoint_is_written_leaves_no_half_of_a_file(tmp_path, monkeypatch):
    kept = Checkpoint(tmp_path / "run", TINY)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kept.keep("part", lambda: {}, finished=True)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path):
    file = tmp_path / "new folder" / "run"
    state = dict(x=torch.arange(3.0), history={"a": [1.0, float("inf")]}, kicks=[0], best=(torch.ones(2), 3), none=None)
    Checkpoint(file, TINY).keep("part", lambda: state, finished=True)
    resumed = Checkpoint(file, TINY)
    there = resumed.parts["part"]
    assert torch.equal(there.pop("x"), state["x"]) and torch.equal(there.pop("best")[0], torch.ones(2))
    assert there == {"history": state["history"], "kicks": [0], "none": None}
    assert "another" not in resumed.parts and 0 < resumed.elapsed < 100
    assert [path.name for path in file.parent.iterdir()] == ["run"]


def test_a_checkpoint_of_another_layout_is_refused(tmp_path):
    file = tmp_path / "run"
    Checkpoint(file, TINY).keep("part", lambda: dict(a=1), finished=True)
    loaded = []
    Checkpoint(file, TINY).resume("part", lambda state: loaded.append(state["a"]))
    Checkpoint(file, TINY).resume("another", lambda state: pytest.fail("there is none"))
    assert loaded == [1]
    with pytest.raises(ValueError, match=f"{file} is of another version"):
        Checkpoint(file, TINY).resume("part", lambda state: loaded.append(state["b"]))


def test_keeping_costs_little_and_stops_no_run(tmp_path, recwarn):
    kept, offers, written = Checkpoint(tmp_path / "run", TINY), 0, []
    while len(written) < 5:
        kept.keep("part", lambda: written.append(1) or {})
        offers += 1
    assert offers > 50  # it is not written every time
    clock = iter((100.0, 102.0, 102.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "_write", lambda: None)
        patch.setattr("run.time", SimpleNamespace(perf_counter=lambda: next(clock)))
        kept.keep("part", dict, finished=True)
    assert kept._due == 102 + 20 * 2  # two seconds of writing are a twentieth of the next forty
    (tmp_path / "taken").write_text("")
    kept.file = tmp_path / "taken" / "run"
    kept.keep("part", dict, finished=True)
    assert "could not be written" in str(recwarn.pop().message)
    Checkpoint().keep("part", pytest.fail, finished=True)  # without a file there is nothing to do


def test_only_the_same_run_goes_on(tmp_path):
    file, cut, other, edges = tmp_path / "run", tmp_path / "cut", tmp_path / "other", torch.arange(5)
    Checkpoint(file, TINY, [edges]).keep("part", dict, finished=True)
    Checkpoint(file, replace(TINY, seconds=3.0, out=Path("elsewhere"), checkpoint=file), [edges.clone()])
    cut.write_bytes(file.read_bytes()[:-300])
    torch.save({"weights": torch.ones(3)}, other)
    for there, config, data, word in (
        (cut, TINY, edges, "no checkpoint"),
        (other, TINY, edges, "no checkpoint"),
        (file, replace(TINY, lam=0.3), edges, "--lam differs"),
        (file, replace(TINY, graph_seed=1), edges, "--graph-seed differs"),
        (file, TINY, edges + 1, "the data differs"),
    ):
        with pytest.raises(ValueError, match=word) as error:
            Checkpoint(there, config, [data])
        assert str(there) in str(error.value)
    with pytest.raises(OSError):
        Checkpoint(tmp_path, TINY, [edges])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it is read as it is")
def test_a_gpus_checkpoint_is_refused_by_what_differs(tmp_path, monkeypatch):
    with monkeypatch.context() as gpu:
        gpu.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        Checkpoint(tmp_path / "run", TINY).keep("part", lambda: dict(x=torch.ones(2)), finished=True)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "run", weights_only=True)
    with pytest.raises(ValueError, match="--steps differs"):
        Checkpoint(tmp_path / "run", replace(TINY, steps=9))


def test_a_main_refuses_the_checkpoint_of_another_run_and_writes_nothing(tmp_path, undrawn):
    file = tmp_path / "run"
    main(replace(TINY, checkpoint=file, out=tmp_path / "out"))
    with pytest.raises(ValueError, match="--p differs"):
        main(replace(TINY, checkpoint=file, p=0.5, out=tmp_path / "refused"))
    assert not any((tmp_path / "refused").iterdir())


class Halving(Descent):
    """Gradient descent on x²/2, with a snapshot at every third step."""

    def __init__(self, steps: int = 10) -> None:
        self.x = torch.tensor([1.0], requires_grad=True)
        generator = torch.Generator().manual_seed(0)
        pgd = PGD([self.x], lr=0.5, rho=1e-3, radius=1e-2, patience=3, generator=generator)
        super().__init__({"x": self.x}, pgd, steps, generator)
        self.stop, self.twice = steps, -1

    def step(self) -> None:
        if self.t == self.stop:
            raise KeyboardInterrupt

        def closure() -> torch.Tensor:
            self.x.grad = self.x.detach().clone()
            return self.x.detach().square().sum() / 2

        self.pgd.step(closure)

    def due(self) -> bool:
        return self.t % 3 == 0

    def row(self) -> dict[str, float]:
        if self.t == self.twice:
            os.kill(os.getpid(), signal.SIGINT)
        return {"t": self.t, "x": float(self.x.detach())}


def test_ctrl_c_while_a_bar_is_drawn_or_taken_away_loses_nothing(monkeypatch):
    class Bar(tqdm):
        def __exit__(self, *how: object) -> None:
            super().__exit__(*how)
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "tqdm", Bar)
    descent = Halving().run()
    assert descent.interrupted and descent.history["t"] == [0, 3, 6, 9, 10]
    assert descent.certified(lambda: 1) is None


def test_the_loop_counts_steps_and_keeps_snapshots_at_their_times():
    descent = Halving().run()
    assert descent.history["t"] == [0, 3, 6, 9, 10] and descent.t == 10
    assert descent.history["x"] == [1, 0.5**3, 0.5**6, 0.5**9, 0.5**10] and not descent.interrupted
    longer = Halving(100).run()
    assert longer.pgd.converged and longer.kicks == [11] and longer.t < 20
    assert longer.arrays()["kicks"].tolist() == [11] and abs(longer.history["x"][-1]) <= 1e-3


def test_an_interrupted_loop_keeps_what_it_has_and_its_checkpoint_goes_on_to_the_same_end(tmp_path):
    whole, first = Halving(100).run(), Halving(100)
    first.stop = 7
    first.run(Checkpoint(tmp_path / "run", TINY))
    assert first.interrupted and first.t == 7 and first.history["t"] == [0, 3, 6, 7]
    second = Halving(100)
    saved = Checkpoint(tmp_path / "run", TINY)
    at = saved.parts["descent"]["t"]
    second.run(saved)
    assert at >= 1 and torch.equal(second.x, whole.x)
    assert (second.t, second.kicks, second.history) == (whole.t, whole.kicks, whole.history)


def test_ctrl_c_in_the_last_snapshot_ends_the_run_and_loses_nothing():
    descent = Halving(4)
    descent.twice = 4
    assert descent.run().interrupted and descent.history["t"] == [0, 3, 4]
    assert descent.certified(lambda: "measured") == "measured"
    descent.t = descent.steps
    assert descent.run().certified(lambda: "measured") is None  # it has come twice: nothing that may take long is begun


def test_a_diverging_loop_says_at_which_step():
    descent = Halving()
    with torch.no_grad():
        descent.x.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="at step 0"):
        descent.run()


@pytest.mark.parametrize(
    "kind, good, bad",
    [
        (run.Positive, [1e-30, 0.5], [0.0, -1.0, float("nan"), float("inf")]),
        (run.NotNegative, [0.0, 1.0], [-1e-9, float("nan")]),
        (run.Momentum, [0.0, 0.999], [1.0, -0.1]),
        (run.Count, [1, 10**9], [0, 10**10]),
        (run.Seed, [0, 2**63 - 1], [-1, 2**63]),
        (run.Device, ["cpu"], ["abacus", "cuda:999"]),
    ],
)
def test_ranges_take_their_ends_and_refuse_what_lies_beyond(kind: Annotated, good, bad):
    adapter = TypeAdapter(kind)
    assert [adapter.validate_python(value) for value in good] == good
    for value in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


def test_files_are_whole_or_not_there(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), whole_files(tmp_path) as folder:
        (folder / "a").write_text("half")
        raise KeyError
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "b").mkdir()
    with pytest.raises(OSError), whole_files(tmp_path / "nowhere") as folder:
        (folder / "a").write_text("new")
    with pytest.raises(OSError, match="b is a folder there"), whole_files(tmp_path) as folder:
        (folder / "a").write_text("new")
        (folder / "b").write_text("new")
    assert (tmp_path / "a").read_text() == "old" and {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    with whole_files(tmp_path) as folder:
        (folder / "a").write_text("new")
        (folder / "c").write_text("more")
    assert (tmp_path / "a").read_text() == "new" and {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}


def test_ctrl_c_waits_until_the_files_are_written_and_those_of_another_run_go(tmp_path):
    for name in ("c.txt", "d.txt", "d.py", "e.txt"):
        (tmp_path / name).write_text("old")
    with pytest.raises(KeyboardInterrupt, match="the files are in"):  # noqa: SIM117
        with whole_files(tmp_path, ("c.txt", "d.txt", "f.txt")) as folder:
            (folder / "c.txt").write_text("new")
            os.kill(os.getpid(), signal.SIGINT)
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == {"c.txt": "new", "d.py": "old", "e.txt": "old"}
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


ENDS = {
    "nothing wrong": (False, 0, ""),
    "interrupted": (True, 130, ""),
    "bad input": (ValueError("two\n lines"), 2, "error: two lines\n"),
    "no file": (FileNotFoundError("g.txt"), 2, "error: g.txt\n"),
    "diverged": (FloatingPointError("the gradient is nan"), 2, "the gradient is nan: the run diverges; try --lr 0.05"),
    "interrupted too early": (KeyboardInterrupt(), 130, "nothing is saved"),
    "interrupted late": (KeyboardInterrupt("the files are there"), 130, "interrupted: the files are there\n"),
    "no memory": (RuntimeError("CUDA is out of memory"), 2, "error: not enough memory: CUDA is out of memory\n"),
}


@pytest.mark.parametrize("ending, status, said", ENDS.values(), ids=ENDS)
def test_how_a_command_ends(monkeypatch, capsys, ending, status, said):
    def main(config: Config) -> bool:
        if isinstance(ending, BaseException):
            raise ending
        return ending

    monkeypatch.setattr(sys, "argv", ["main.py", "--lr", "0.5"])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards
    with pytest.raises(SystemExit) as exit:
        run.command_line(main, Config, "A test.")
    message = capsys.readouterr().err
    assert exit.value.code == status and said in message and message.count("\n") == bool(said)


def test_a_checkpoint_is_named_where_ctrl_c_came_before_the_files(tmp_path, monkeypatch, capsys):
    def main(config: Config) -> bool:
        Checkpoint(config.checkpoint, config)
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["main.py", "--checkpoint", str(tmp_path / "run")])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with pytest.raises(SystemExit):
        run.command_line(main, Config, "A test.")
    assert f"--checkpoint {tmp_path / 'run'} goes on from what it has" in capsys.readouterr().err


def test_a_checkpoint_minds_what_shapes_the_run_and_nothing_else(tmp_path):
    Checkpoint(tmp_path / "run", TINY)
    Checkpoint(tmp_path / "run", replace(TINY, roundings=7, seconds=3.0, out=tmp_path))
    with pytest.raises(ValueError, match="--steps differs"):
        Checkpoint(tmp_path / "run", replace(TINY, steps=9))


def test_a_bug_keeps_its_traceback(monkeypatch):
    def main(config: Config) -> bool:
        raise RuntimeError("a bug")

    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with pytest.raises(RuntimeError, match="a bug"):
        run.command_line(main, Config, "A test.")


def test_logarithmic_axes_have_their_labels_in_plain_letters(tmp_path):
    figure = Figure()
    far, near, signed, linear = figure.subplots(4)
    far.set(yscale="log", ylim=(1e-12, 1e3), yticks=[1e-12, 1, 1e3])
    near.set(yscale="log", ylim=(0.15, 0.5))
    signed.set_yscale("symlog", linthresh=1e-3)
    signed.set(ylim=(-2, 2), yticks=[-1, -1e-3, 0, 1e-2])
    linear.set(ylim=(0, 1), yticks=[0, 0.5], yticklabels=["$0$", "½"])
    save_figure(figure, tmp_path, "axes")
    assert {file.name for file in tmp_path.iterdir()} == {"axes.png", "axes.pdf"}

    def labels(axes: object, minor: bool = False) -> list[str]:
        return [label.get_text() for label in axes.get_yticklabels(minor=minor) if label.get_text()]

    assert labels(far) == ["10⁻¹²", "10⁰", "10³"]
    assert labels(near, minor=True)[:2] == ["2×10⁻¹", "3×10⁻¹"]
    assert labels(signed) == ["−10⁰", "−10⁻³", "0", "10⁻²"]
    assert labels(linear) == ["$0$", "½"]


def test_the_legend_has_each_label_of_all_panels_once():
    figure = Figure()
    for axes, labels in zip(figure.subplots(2), (("one",), ("one", "two")), strict=True):
        for label in labels:
            axes.plot([0], [0], label=label)
    run.legend_below(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]


def test_the_number_of_threads_is_the_blocks_own():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads(before + 1):
        assert torch.get_num_threads() == before + 1
        with threads():
            assert torch.get_num_threads() == before + 1
            torch.set_num_threads(before + 2)
        assert torch.get_num_threads() == before + 1
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == before
