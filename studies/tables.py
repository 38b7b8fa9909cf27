"""Every number of the READMEs comes from a file of results/, which a command of this repository wrote.

python studies/tables.py run [NAME …] --graphs FOLDER    runs the rows of results/tables.toml, and keeps their results
python studies/tables.py write                           writes tables and numbers into the READMEs
python studies/tables.py check                           says where a README and the results differ; a test asks it

A table stands between `<!-- table NAME -->` and `<!-- end -->`: results/tables.toml has its columns, format strings
over a row's results.json, in which `a/b` divides and `a[b]` looks up; or it is a study's own. A number in prose is a
link, `[22](results/nn_default.json "w_perp_initial:.0f")`, whose title is such a format. The command that a table
shows is of the row's flags, and nothing is written unless they give the config that each run has kept.
"""

import ast
import json
import re
import shlex
import string
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(1, str(ROOT / "MAXCUT"))  # for run.py, the same in every experiment

import sweep

RESULTS = ROOT / "results"
WHERE = ("out", "checkpoint", "graph", "data")
"""flags that name a path: kept without their folders, or not at all"""


class Cells(string.Formatter):
    """Format strings over a row: `{cut/best_known:.2%}`, `{certificate[w_norm]:.1e}`; None is –, True is yes."""

    def get_field(self, field_name: str, args: tuple, kwargs: dict) -> tuple[object, str]:
        """The value that a replacement field names."""
        values = [_look_up(kwargs, path) for path in field_name.split("/")]
        ratio = len(values) == 2 and None not in values
        return values[0] / values[1] if ratio else values[0], field_name

    def format_field(self, value: object, format_spec: str) -> str:
        """The value as text."""
        words = {None: "–", True: "yes", False: "no"}
        special = value is None or isinstance(value, bool)
        return words[value] if special else format(value, format_spec or (".3g" if isinstance(value, float) else ""))


def _look_up(row: object, path: str) -> object:
    for key in re.findall(r"[^\[\]]+", path):
        if row is not None:  # as where a run has no certificate
            row = row[int(key)] if isinstance(row, list) else row[key]
    return row


def tables() -> dict[str, dict]:
    """What results/tables.toml says, by the table's name; a row without flags belongs to another table."""
    return tomllib.loads((RESULTS / "tables.toml").read_text(encoding="utf-8"))


def rows() -> Iterator[tuple[str, dict]]:
    """Experiment and row, of each row that is run."""
    for spec in tables().values():
        yield from ((spec["experiment"], row) for row in spec["rows"] if "flags" in row)


def load(name: str) -> dict:
    """results/NAME.json."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{file.relative_to(ROOT)} is not there: `tables.py run {name}` writes it, or its study"
        )
    return json.loads(file.read_text(encoding="utf-8"))


def defaults(experiment: str) -> dict[str, object]:
    """The hyperparameters at the top of the experiment's main.py, read and not imported: three have the same names."""
    tree = ast.parse((ROOT / experiment / "main.py").read_text(encoding="utf-8"))
    (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config")
    fields = (node for node in config.body if isinstance(node, ast.AnnAssign) and node.target.id != "out")
    return {field.target.id: ast.literal_eval(field.value) for field in fields}


def stale() -> Iterator[str]:
    """Where the config that a row's run has kept is not what its flags give, with main.py's defaults as they are."""
    for experiment, row in rows():
        name, asked, ran = row["name"], defaults(experiment), load(row["name"])["config"]
        for flag in re.split("(?:^| )--", row["flags"])[1:]:
            field, *values = shlex.split(flag)
            asked[field.removeprefix("no-").replace("-", "_")] = values or not field.startswith("no-")
        asked, ran = ({field: _plain(value) for field, value in config.items()} for config in (asked, ran))
        for x in sorted({field for field, _ in asked.items() ^ ran.items()}):
            told = f"ran with {x} {ran.get(x, 'not there')}, now it is {asked.get(x, 'not there')}"
            yield f"results/{name}.json: {told}; run {name} again"


def _plain(value: object) -> str:
    """A hyperparameter's value, the same for a flag's and a config's: 1e-5 is 0.00001, and a path its name."""
    words = [Path(str(x)).name for x in (value if isinstance(value, list | tuple) else [value])]
    return " ".join(f"{float(x):.15g}" if re.fullmatch(r"[-+.\de]*\d[-+.\de]*", x) else x for x in words)


def run(names: tuple[str, ...] = (), /, graphs: Path | None = None) -> int:
    """Run these rows, or all, and keep their results.json; folders that are this machine's own are cut off.

    Args:
        names: of rows.
        graphs: folder of the Gset's graphs, which are not in the repository; without it their rows are left alone.
    """
    todo = [(experiment, row) for experiment, row in rows() if not names or row["name"] in names]
    if unknown := set(names) - {row["name"] for _, row in todo}:
        raise ValueError(f"{', '.join(sorted(unknown))}: no such row in results/tables.toml")
    failed = 0
    for experiment, row in todo:
        if "GRAPHS" in row["flags"] and graphs is None:
            print(f"{row['name']}: left alone, it needs --graphs FOLDER")
            continue
        flags = [flag.replace("GRAPHS", str(graphs)) for flag in shlex.split(row["flags"])]
        with tempfile.TemporaryDirectory() as out:
            program = [sys.executable, ROOT / experiment / "main.py", *flags, "--out", out]
            done = subprocess.run(program, capture_output=True, text=True)
            if done.returncode == 0:
                result = json.loads((Path(out) / "results.json").read_text(encoding="utf-8"))
                for field in WHERE:
                    if result["config"].get(field) is not None:
                        result["config"][field] = Path(result["config"][field]).name
                del result["config"]["out"]
                text = json.dumps(result, indent=2, ensure_ascii=False)
                (RESULTS / f"{row['name']}.json").write_text(text + "\n", encoding="utf-8")
        print(f"{row['name']}: {experiment} {row['flags']}: ", end="")
        print("kept" if done.returncode == 0 else f"exit status {done.returncode}: {done.stderr.strip()}", flush=True)
        failed += done.returncode != 0
    return min(failed, 1)


def table(name: str, folder: Path) -> str:
    """The table of that name, for a README in that folder."""
    spec = tables().get(name)
    if spec is None:
        result = load(name)
        return sweep.table(result["header"], result["body"])
    header, body = dict.fromkeys(spec["columns"]), []
    if "experiment" in spec and "command" in header:
        program = "main.py" if folder.name == spec["experiment"] else f"{spec['experiment']}/main.py"
        header["command"] = f"`python {program} …`"
    known = {row["name"]: row["flags"].replace("GRAPHS/", "") for _, row in rows()}
    for row in spec["rows"]:
        result, flags = load(row["name"]), known[row["name"]]
        if "experiment" not in spec:
            flags = f"python {result['experiment']}/main.py {flags}".strip()
        label = f"{row['label']}: " if "label" in row else ""
        values = result | {"command": label + (f"`{flags}`" if flags else "(no flags)")}
        own = {key: Cells().format(x, **result) if isinstance(x, str) else x for key, x in row.items()}
        body.append([Cells().format(form or "{command}", **(values | own)) for form in spec["columns"].values()])
    return sweep.table([text or column for column, text in header.items()], body)


TABLE = re.compile(r"(<!-- table (\S+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r'\[[^\]\n]*\](\([^()\s]*results/([\w.-]+)\.json "([^"\n]+)"\))')


def written(readme: Path) -> str:
    """The README's text with the tables and numbers that the results give."""
    text = readme.read_text(encoding="utf-8")
    text = TABLE.sub(lambda found: f"{found[1]}{table(found[2], readme.parent)}\n", text)
    return NUMBER.sub(lambda found: f"[{Cells().format(f'{{{found[3]}}}', **load(found[2]))}]{found[1]}", text)


def readmes() -> list[Path]:
    """The READMEs that have numbers."""
    return sorted([ROOT / "README.md", *ROOT.glob("[!.]*/README.md")])


def write() -> None:
    """Write tables and numbers into the READMEs, unless a run is `stale`."""
    if found := list(stale()):
        raise ValueError(found[0])
    texts = {readme: written(readme) for readme in readmes()}  # all, or none
    for readme, text in texts.items():
        if text != readme.read_text(encoding="utf-8"):
            readme.write_text(text, encoding="utf-8")
            print(f"{readme.relative_to(ROOT)}: written")


def differences() -> list[str]:
    """Where a README and the results differ, or a row's flags and the config of its run."""
    found = list(stale())
    for readme in readmes():
        lines = readme.read_text(encoding="utf-8").splitlines(), written(readme).splitlines()
        differ = [old for old, new in zip(*lines, strict=False) if old != new]
        if differ or len(lines[0]) != len(lines[1]):
            found.append(f"{readme.relative_to(ROOT)} differs from the results: {(differ or ['its length'])[0]}")
    return found


def check() -> int:
    """Say where READMEs and results differ; exit status 1 if they do."""
    print("\n".join(found := differences()) or "all numbers are those of results/")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(sweep.command_line({"run": run, "write": write, "check": check}, __doc__))
