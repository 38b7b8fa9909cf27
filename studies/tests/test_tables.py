"""Tables and numbers of the READMEs: what is kept of a run, how it is shown, and that nothing else can be shown."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(1, str(ROOT / "MAXCUT"))

import tables

MAIN = '''
import json, sys
from pathlib import Path
from dataclasses import dataclass

@dataclass
class Config:
    lr: float = 0.1
    """step"""
    width: tuple[int, ...] = (10, 10)
    toy: bool = True
    data: Path | None = None
    checkpoint: Path | None = None
    out: Path = Path(__file__).parent / "figures"

flags = sys.argv[1:]
if "--bad" in flags:
    sys.exit("error: bad")
out = Path(flags[flags.index("--out") + 1])
value = lambda name, default: type(default)(flags[flags.index(name) + 1]) if name in flags else default
config = dict(lr=value("--lr", 0.1), width=[5] if "--width" in flags else [10, 10], toy="--no-toy" not in flags,
              data=value("--data", "") or None, checkpoint=None, out=str(out))
result = dict(experiment="Toy", config=config, cut=41, best=None, void=None, certificate=dict(ok=True))
result["lr2"] = config["lr"] ** 2
(out / "results.json").write_text(json.dumps(result))
'''
TOML = """
[toys]
experiment = "Toy"

[toys.columns]
command = ""
cut = "{cut}"
best = "{best}"
sure = "{certificate[ok]}"
"of 82" = "{cut/known:.0%}"
said = "{said}"

[[toys.rows]]
name = "toy_lr_1e-1.0"
flags = ""
known = 82
said = "at {lr2:.3f}"

[[toys.rows]]
name = "toy_other"
flags = "--width 5 --lr 1e-6 --no-toy"
label = "other"
known = 41
said = "{void[deep]}"

[front]
columns = { what = "{what}", command = "" }
rows = [{ name = "toy_other", what = "a toy" }]

[graphs]
experiment = "Toy"
columns = { command = "" }
rows = [{ name = "toy_data", flags = "--data GRAPHS/G1.txt" }]
"""
README = """Text, [..](../results/toy_lr_1e-1.0.json "cut/lr:.1f") of it.
<!-- table toys -->
| old |
<!-- end -->
<!-- table front --><!-- end -->
<!-- table study -->
<!-- end -->
Text.
"""
WRITTEN = """Text, [410.0](../results/toy_lr_1e-1.0.json "cut/config[lr]:.1f") of it.
<!-- table toys -->
| `python main.py …` | cut | best | sure | of 82 | said |
| --- | --- | --- | --- | --- | --- |
| (no flags) | 41 | – | yes | 50% | at 0.010 |
| other: `--width 5 --lr 1e-6 --no-toy` | 41 | – | yes | 100% | – |
<!-- end -->
<!-- table front -->
| what | command |
| --- | --- |
| a toy | `python Toy/main.py --width 5 --lr 1e-6 --no-toy` |
<!-- end -->
<!-- table study -->
| a |
| --- |
| 2 (1 – 3) |
<!-- end -->
Text.
"""


@pytest.fixture
def house(tmp_path, monkeypatch) -> Path:
    """A repository of one experiment."""
    for folder in ("Toy", "results"):
        (tmp_path / folder).mkdir()
    (tmp_path / "Toy" / "main.py").write_text(MAIN)
    (tmp_path / "results" / "tables.toml").write_text(TOML)
    (tmp_path / "results" / "study.json").write_text(json.dumps({"header": ["a"], "body": [[[1.0, 2.0, 3.0]]]}))
    (tmp_path / "README.md").write_text("no number")
    text = README.replace("cut/lr", "cut/config[lr]").replace("front --><!--", "front -->\n<!--")
    (tmp_path / "Toy" / "README.md").write_text(text)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    return tmp_path


def test_rows_are_run_kept_and_written(house, capsys):
    assert tables.run(("toy_other",)) == 0
    for command in (tables.write, tables.check):
        with pytest.raises(FileNotFoundError, match=r"run toy_lr_1e-1\.0"):
            command()
    assert "| old |" in (house / "Toy" / "README.md").read_text()
    assert tables.run() == 0
    assert "toy_data: left alone, it needs --graphs" in capsys.readouterr().out
    assert tables.run(graphs=Path("/some/graphs")) == 0
    assert sorted(path.name for path in (house / "results").glob("toy*")) == [
        "toy_data.json",
        "toy_lr_1e-1.0.json",
        "toy_other.json",
    ]
    assert "/" not in (house / "results" / "toy_data.json").read_text()
    tables.write()
    assert (house / "Toy" / "README.md").read_text() == WRITTEN
    assert tables.differences() == [] and tables.check() == 0


@pytest.fixture
def written(house) -> Path:
    tables.run(graphs=Path("graphs"))
    tables.write()
    return house


@pytest.mark.parametrize(
    "file, old, new, told",
    [
        ("Toy/README.md", "[410.0]", "[411.0]", "Toy/README.md differs"),
        ("Toy/README.md", "| 41 |", "| 42 |", "Toy/README.md differs"),
        ("Toy/README.md", "| a |\n", "| a |\n| b |\n", "Toy/README.md differs"),
        ("results/toy_other.json", '"cut": 41', '"cut": 42', "Toy/README.md differs"),
        ("results/toy_other.json", '"lr": 1e-06', '"lr": 1e-05', "ran with lr 1e-05, now it is 1e-06"),
        ("results/tables.toml", "--width 5", "--width 6", "toy_other.json: ran with width 5, now it is 6"),
        ("results/tables.toml", "--width 5 --lr 1e-6", "--width 1e-6 --lr 5", "lr 1e-06, now it is 5"),
        ("results/tables.toml", " --no-toy", "", "ran with toy False, now it is True"),
        ("results/tables.toml", "GRAPHS/G1.txt", "GRAPHS/G2.txt", "toy_data.json: ran with data G1.txt, now"),
        ("Toy/main.py", "lr: float = 0.1", "lr: float = 0.2", "toy_lr_1e-1.0.json: ran with lr 0.1, now it is 0.2"),
    ],
)
def test_whatever_changes_is_told(written, file, old, new, told):
    text = (written / file).read_text()
    assert old in text
    (written / file).write_text(text.replace(old, new, 1))
    assert told in "\n".join(tables.differences()) and tables.check() == 1


@pytest.mark.parametrize(
    "line, told", [("", "toy True, now it is not there"), ("    new: int = 1\n", "new not there, now it is 1")]
)
def test_what_other_hyperparameters_gave_is_told_and_not_written(written, line, told):
    main = written / "Toy" / "main.py"
    main.write_text(main.read_text().replace("    toy: bool = True\n", line))
    assert told in "\n".join(tables.differences())
    with pytest.raises(ValueError, match=r"run toy_lr_1e-1\.0 again"):
        tables.write()


def test_a_run_that_fails_keeps_nothing(written, capsys):
    toml = written / "results" / "tables.toml"
    toml.write_text(toml.read_text().replace("--no-toy", "--bad"))
    before = (written / "results" / "toy_other.json").read_bytes()
    assert tables.run(("toy_other",)) == 1
    assert "exit status 1: error: bad" in capsys.readouterr().out
    assert (written / "results" / "toy_other.json").read_bytes() == before
    with pytest.raises(ValueError, match="toys: no such row"):
        tables.run(("toys",))
