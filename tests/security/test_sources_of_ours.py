"""What our own code never does with what it reads: calls that run or trust it, by name, in all that is shipped."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(file for folder in ("cromss", "cluster", "tune_spaces") for file in (ROOT / folder).rglob("*.py"))
SHELL = sorted(file for file in (ROOT / "cluster").rglob("*") if file.suffix in (".sh", ".yaml", ".yml", ".env"))


def name(node: ast.expr) -> str:
    """`torch.load` of a call's function, as it is written."""
    if isinstance(node, ast.Attribute):
        return f"{name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def keyword(call: ast.Call, wanted: str) -> object:
    """A keyword's constant; None where it is not given, ... where it is no constant."""
    found = [one.value for one in call.keywords if one.arg == wanted]
    return None if not found else found[0].value if isinstance(found[0], ast.Constant) else ...


def creates(call: ast.Call) -> bool:
    """Whether it opens a file of its own making, to write."""
    return len(call.args) > 1 and isinstance(call.args[1], ast.Constant) and call.args[1].value == "w"


RUNS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads",
    "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "eval", "exec", "compile", "os.system", "os.popen",
    "subprocess.getoutput", "subprocess.getstatusoutput", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all", "torch.hub.load", "pandas.read_pickle", "pd.read_pickle",
    "tempfile.mktemp", "mlflow.pyfunc.load_model", "mlflow.pytorch.load_model", "mlflow.sklearn.load_model", "zarr.open",
    "ssl._create_unverified_context", "os.chmod",
}  # fmt: skip
# Where one of the above is right, and why.
ALLOWED: dict[tuple[str, str], str] = {}


def faults(text: str, file: str = "x.py") -> Iterator[str]:
    """Lines of a Python source that do what is not done here."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        called, fault = name(node.func), ""
        last = called.rpartition(".")[2]
        if called in RUNS and (file, called) not in ALLOWED:
            fault = "runs or trusts what it is given"
        elif called == "torch.load" and keyword(node, "weights_only") is not True:
            fault = "without weights_only=True"
        elif keyword(node, "allow_pickle") not in (None, False):
            fault = "unpickles"
        elif keyword(node, "shell") not in (None, False):
            fault = "with a shell"
        elif last in ("extractall", "extract") and keyword(node, "filter") != "data":
            fault = "without filter='data'"
        elif keyword(node, "verify") is False:
            fault = "without looking at certificates"
        elif keyword(node, "trust_remote_code") not in (None, False):
            fault = "runs what it downloads"
        elif called.endswith("rasterio.open") and not (file.startswith(OPENERS) or creates(node)):
            fault = "outside of data/raster.py"
        elif last == "Environment" and called.startswith("jinja2") and keyword(node, "autoescape") is not True:
            fault = "without autoescape=True"
        if fault:
            yield f"{file}:{node.lineno}: {called} {fault}"


# The one guarded place, and what opens files that it has just written itself.
OPENERS = ("cromss/data/raster.py", "cromss/benchmarks/")


def test_there_is_something_to_look_at():
    assert len(FILES) > 150
    assert len(SHELL) > 3


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_call_runs_or_trusts_what_it_reads(file):
    assert list(faults(file.read_text(), str(file.relative_to(ROOT)))) == []


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(f)", "torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=x)",
        "yaml.load(t, Loader=yaml.SafeLoader)", "subprocess.run(c, shell=True)", "subprocess.run(c, shell=x)",
        "tarfile.open(p).extractall(d)", "z.extractall(d, filter='tar')", "requests.get(u, verify=False)",
        "rasterio.open(p)", "rasterio.open(p, 'r+')", "np.load(p, allow_pickle=True)", "eval(t)", "os.system(t)",
        "jinja2.Environment(loader=l)", "AutoModel.from_pretrained(n, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_look_finds_what_it_looks_for(line):
    assert len(list(faults(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(p, weights_only=True)", "yaml.safe_load(t)", "subprocess.run(['a', x])", "np.load(p)",
        "tarfile.open(p).extractall(d, filter='data')", "re.compile('x')", "model.eval()", "subprocess.run(c, shell=False)",
        "rasterio.open(p, 'w', count=1)",
    ],
)  # fmt: skip
def test_the_look_leaves_alone_what_is_right(line):
    assert list(faults(line)) == []


BAD = re.compile(
    r"\|\s*(ba)?sh\b(?!\w)|--insecure|curl -k|--no-check-certificate|--trusted-host|StrictHostKeyChecking=no|chmod 777|\beval "
)


@pytest.mark.parametrize("file", SHELL, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_script_runs_what_it_downloads_or_forgoes_certificates(file):
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    assert [line for line in lines if BAD.search(line)] == []
