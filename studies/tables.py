"""Every number of the READMEs comes from a file of results/, which a command of this repository wrote.

python studies/tables.py run [NAME …] --graphs FOLDER    runs the rows of results/tables.toml, and keeps their results
python studies/tables.py write                           writes tables and numbers into the READMEs
python studies/tables.py check                           says where a README and the results differ; a test asks it

A table stands between `<!-- table NAME -->` and `<!-- end -->`: results/tables.toml has its columns, format strings
over a row's results.json, in which `a/b` divides and `a[b]` looks up; or it is a study's own. A number in prose is a
link, `[22](results/nn_default.json "w_perp_initial:.0f")`, whose title is such a format. The command that a table
shows follows from the config that its run has kept, so no table names another command than the one that ran.
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


def command(name: str, result: dict) -> list[str]:
    """The flags with which the run's config differs from the defaults, as the command line takes them."""
    found, known = [], defaults(result["experiment"])
    if new := known.keys() - result["config"].keys():
        raise ValueError(f"results/{name}.json: it is older than {min(new)}; run {name} again")
    for field, value in result["config"].items():
        if field not in known:
            raise ValueError(f"results/{name}.json: {field} is no hyperparameter any more; run {name} again")
        default, flag = known[field], f"--{field.replace('_', '-')}"
        if value == (list(default) if isinstance(default, tuple) else default):
            continue
        if isinstance(value, bool):
            found.append(flag if value else f"--no-{flag[2:]}")
        else:
            found += [flag, *map(_argument, value if isinstance(value, list) else [value])]
    return found


def _argument(value: object) -> str:
    if not isinstance(value, float):
        return shlex.quote(str(value))
    short = f"{value:g}"
    return re.sub(r"e([+-])0*", lambda e: "e" + e[1].strip("+"), short if float(short) == value else repr(value))


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
    for row in spec["rows"]:
        result = load(row["name"])
        flags = " ".join(command(row["name"], result))
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
    """Write tables and numbers into the READMEs."""
    texts = {readme: written(readme) for readme in readmes()}  # all, or none
    for readme, text in texts.items():
        if text != readme.read_text(encoding="utf-8"):
            readme.write_text(text, encoding="utf-8")
            print(f"{readme.relative_to(ROOT)}: written")


def differences() -> list[str]:
    """Where a README and the results differ, or a row's flags and the config of its run."""

    def plain(flags: list[str]) -> list[str]:
        words = [_argument(float(x)) if re.fullmatch(r"[-+.\de]*\d[-+.\de]*", x) else Path(x).name for x in flags]
        return sorted(map(str.strip, " ".join(words).split("--")))

    found = []
    for _, row in rows():
        shown, asked = command(row["name"], load(row["name"])), shlex.split(row["flags"])
        if plain(shown) != plain(asked):
            found.append(f"results/{row['name']}.json: ran with {shlex.join(shown)}, tables.toml asks {row['flags']}")
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
