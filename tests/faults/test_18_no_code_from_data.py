"""Fault 18: code in data: a malicious pickle as checkpoint, model, class means, .mat, MLflow model,
random state, study or list of images; YAML tags.

Expected: refused with a typed error, and nothing is run; no line of src/ can unpickle, construct
from YAML, evaluate text or call a shell.

The last of it is read from the syntax tree.
"""

from __future__ import annotations

import ast
import hashlib
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from support.commands import call
from support.projects import runs, workspace, write_params
from support.repository import REPOSITORY
from uotft.core import config, storage
from uotft.core.errors import UserError
from uotft.data import files, lists
from uotft.models import model_io, weights
from uotft.runs import study
from uotft.selection import banks
from uotft.training import runtime, state as snapshot

MODULES = """pickle _pickle cPickle pickle5 marshal shelve dill joblib cloudpickle jsonpickle code
    codeop runpy pty commands builtins torch.package mlflow.pytorch mlflow.sklearn"""
USES = """torch.hub.load torch.hub.load_state_dict_from_url torch.utils.model_zoo torch.jit.load
    numpy.lib.npyio numpy.DataSource pandas.read_pickle pandas.read_hdf yaml.load
    yaml.load_all yaml.full_load yaml.full_load_all yaml.unsafe_load yaml.unsafe_load_all
    yaml.Loader yaml.FullLoader yaml.UnsafeLoader yaml.CLoader yaml.CFullLoader yaml.CUnsafeLoader
    eval exec compile __import__ os.system os.popen subprocess.getoutput subprocess.getstatusoutput
    asyncio.create_subprocess_shell mlflow.pyfunc.load_model shutil.unpack_archive"""
BANNED = frozenset(f"{MODULES} {USES}".split())
BUILTINS = {"eval", "exec", "compile", "__import__"}
GUARDED = {  # allowed with one keyword alone, spelled out
    "torch.load": ("weights_only", "True"),
    "numpy.load": ("allow_pickle", "False"),
    "numpy.lib.format.read_array": ("allow_pickle", "False"),
}
METHODS = {"extractall", "unpack_archive", "load_state", "to_pickle", "read_pickle"}
ALONE = {  # in one file alone
    "scipy.io.loadmat": "files.py",  # arrays, structs and texts; it knows no pickle
    "torch.export.load": "export.py",  # the bytes that this process has just made
    "importlib.import_module": "registry.py",  # names of files of this package
}


def code_from_data(text: str, file: str = "") -> list[str]:
    """What a module may do with data that runs code: 'line N: name', in order."""
    tree, known, found = ast.parse(text), dict[str, str](), list[tuple[int, str]]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for alias in node.names:
                name = f"{module}.{alias.name}" if module else alias.name
                top = alias.name.partition(".")[0]
                known[alias.asname or top] = name if module or alias.asname else top
                found += [(node.lineno, name), (node.lineno, module or "")]

    def full(node: ast.AST) -> str:
        """The dotted name that an expression means, by the imports of this module."""
        if isinstance(node, ast.Name):
            return known.get(node.id, "" if node.id in BANNED - BUILTINS else node.id)
        if isinstance(node, ast.Attribute):
            return f"{full(node.value)}.{node.attr}"
        if isinstance(node, ast.Call) and full(node.func) == "getattr" and len(node.args) > 1:
            word = node.args[1]  # one that is not spelled out might be any
            spelled = word.value if isinstance(word, ast.Constant) else "*"
            return f"{full(node.args[0])}.{spelled}"
        return ""

    fine = set()
    for node in ast.walk(tree):  # from the outside inwards: a call before the name in it
        if isinstance(node, ast.Call):
            name, words = full(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in GUARDED and words.get(GUARDED[name][0]) == GUARDED[name][1]:
                fine.add(node.func)
            hidden = None in words and name.startswith("subprocess.")
            if hidden or words.get("shell", "False") != "False":
                found.append((node.lineno, "a shell"))
            if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                found.append((node.lineno, node.func.attr))
        used = isinstance(getattr(node, "ctx", None), ast.Load) or isinstance(node, ast.Call)
        if used and node not in fine:
            name = full(node)
            guarded = name in GUARDED or name in {f"{g.rpartition('.')[0]}.*" for g in GUARDED}
            found.append((node.lineno, f"{name} unguarded" if guarded else name))
    return [
        f"line {line}: {name}"
        for line, name in sorted(set(found))
        if name == "a shell"
        or name.endswith(" unguarded")
        or name in METHODS
        or any(name == word or name.startswith(f"{word}.") for word in BANNED)
        or ALONE.get(name, file) != file
    ]


def sources() -> Iterator[Path]:
    """Every module that is installed."""
    yield from (REPOSITORY / "src").rglob("*.py")


def test_nothing_in_the_sources_runs_data(measured: Callable[[str], None]) -> None:
    found = {str(path): code_from_data(path.read_text(), path.name) for path in sources()}
    assert {path: bad for path, bad in found.items() if bad} == {}
    assert len(found) > 100
    measured(f"{len(found)} modules read as syntax trees: 0 ways to run data")


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import marshal, json",
        "import shelve",
        "from joblib import load",
        "import cloudpickle",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import torch\ntorch.load('x', **settings)",
        "import torch\ntorch.load('x', weights_only=safe)",
        "from torch import load\nload('x')",
        "from torch import load as get\nget('x', weights_only=False)",
        "import torch as t\nread = t.load\nread('x')",
        "import torch\ngetattr(torch, 'load')('x')",
        "import torch\ngetattr(torch, name)('x')",
        "import torch\ntorch.hub.load('a', 'b')",
        "import torch\ntorch.jit.load('x')",
        "from torch import jit\njit.load('x')",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "from numpy import load\nload('x', mmap_mode='r')",
        "import numpy as np\nnp.lib.format.read_array(file)",
        "from numpy.lib import format\nformat.read_array(file, allow_pickle=True)",
        "import pandas as pd\npd.read_pickle('x')",
        "table.to_pickle('x')",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import yaml as y\ny.unsafe_load(text)",
        "from yaml import full_load\nfull_load(text)",
        "import yaml\nyaml.compose(text, yaml.Loader)",
        "from scipy.io import loadmat\nloadmat('x')",
        "import torch\ntorch.export.load('x')",
        "import importlib\nimportlib.import_module(name)",
        "eval(text)",
        "exec(text)",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "import builtins\nbuiltins.eval(text)",
        "import os\nos.system('ls')",
        "from os import popen\npopen('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "from subprocess import Popen as P\nP('ls', shell=wanted)",
        "import subprocess\nsubprocess.run('ls', **how)",
        "import subprocess\nsubprocess.getoutput('ls')",
        "archive.extractall(folder)",
        "import shutil\nshutil.unpack_archive('x')",
        "accelerator.load_state('x')",
        "import mlflow\nmlflow.pyfunc.load_model(uri)",
    ],
)  # fmt: skip
def test_what_is_planted_is_found(planted: str) -> None:
    assert code_from_data(planted), planted


@pytest.mark.parametrize(
    "fine",
    [
        "import torch\ntorch.load('x', weights_only=True)",
        "from torch import load\nload('x', weights_only=True)",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)\nyaml.compose(text, yaml.SafeLoader)",
        "import re, torch\nre.compile('x')\ntorch.compile(network)\nnetwork.eval()",
        "import subprocess\nsubprocess.run(['ls'], cwd=folder, shell=False)",
        "from safetensors.torch import load\nload(content)",
    ],
)
def test_what_is_safe_is_left_alone(fine: str) -> None:
    assert code_from_data(fine) == []


class Attack:
    """Its pickle runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):  # noqa: ANN204
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def attack(tmp_path: Path) -> Iterator[Attack]:
    """Something to pickle; the test fails if its command has run."""
    made = Attack(tmp_path / "ran")
    yield made
    assert not made.marker.exists(), "code from data has run"


def test_the_attack_works(tmp_path: Path) -> None:
    """Where it is unpickled, it does run: or the other tests would show nothing."""
    pickle.loads(pickle.dumps(Attack(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["evil.pth", "evil.pt", "evil.safetensors", "old.pth"])
def test_weights(attack: Attack, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "old.pth":  # the format before zip files, and a bare pickle
        torch.save({"state_dict": {"a": attack}}, path, _use_new_zipfile_serialization=False)
    elif name == "evil.pt":
        path.write_bytes(pickle.dumps({"a": attack}))
    else:
        torch.save({"state_dict": {"a": attack}}, path)
    with pytest.raises(UserError, match=rf"{name}: not a readable file of weights") as said:
        weights.read(path)
    assert name in ("evil.pt", "evil.safetensors") or "system" in str(said.value)


@pytest.mark.parametrize("name", ["s.npz", "t.npz", "u.npy", "v.npy", "w.npz"])
def test_class_means(attack: Attack, tmp_path: Path, name: str) -> None:
    path, held = tmp_path / name, np.array([attack], dtype=object)
    if name in ("t.npz", "w.npz"):
        np.savez(path, **{"means" if name == "t.npz" else "names": held})
    elif name == "v.npy":
        np.save(path, held, allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(attack))
    with pytest.raises(UserError, match=rf"{name}: not a readable"):
        banks.read(path)


@pytest.mark.parametrize("read", [storage.read_arrays, storage.read_images, storage.read_answers])
def test_arrays_of_the_pipeline(attack: Attack, tmp_path: Path, read: Callable) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([attack], dtype=object), images=np.zeros(1))
    with pytest.raises(UserError, match=r"a\.npz: not a readable npz of plain arrays"):
        read(tmp_path / "a.npz")


def test_decoded_pixels(attack: Attack, tmp_path: Path) -> None:
    """A store of pixels is mapped: NumPy maps no objects."""
    np.save(tmp_path / "pixels.npy", np.array([attack], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects in dtype"):
        np.lib.format.open_memmap(tmp_path / "pixels.npy", "r")


def test_lists_in_matlab_files(attack: Attack, tmp_path: Path) -> None:
    (tmp_path / "a.mat").write_bytes(pickle.dumps({"labels": attack}))
    with pytest.raises(UserError, match=r"a\.mat: labels cannot be read"):
        files.mat(tmp_path / "a.mat", ("labels",), lambda value: value)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_model(attack: Attack, tiny: Path, tmp_path: Path, kind: str) -> None:
    """Whoever changes the weights can change the checksum beside them."""
    made = Path(shutil.copytree(tiny / "pretrained/glyphs", tmp_path / "model"))
    evil = made / "model.safetensors"
    _write(evil, attack, kind)
    with pytest.raises(UserError, match=r"is not the file that model\.json describes"):
        model_io.read(made)
    facts = storage.read_json(made / "model.json")
    storage.write_json(made / "model.json", facts | {"sha256": storage.fingerprint(evil)})
    with pytest.raises(UserError, match=r"does not fit its model\.json"):
        model_io.read(made)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_checkpoint_with_its_random_states(attack: Attack, tmp_path: Path, kind: str) -> None:
    network = torch.nn.Linear(2, 2)
    state = snapshot.State(
        network, torch.optim.SGD(network.parameters()), None, runtime.start(0, 1)
    )
    path = tmp_path / "step-000000001" / "rank-0.safetensors"
    snapshot.write(path, state)
    snapshot.restore(path, state)
    _write(path, attack, kind)
    with pytest.raises(UserError, match=r"rank-0\.safetensors: not a checkpoint"):
        snapshot.restore(path, state)


def _write(path: Path, attack: Attack, kind: str) -> None:
    if kind == "torch":
        torch.save({"random.torch": attack}, path)
    else:
        path.write_bytes(pickle.dumps(attack))


def test_the_trials_of_a_search(attack: Attack, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(pickle.dumps(attack))
    with pytest.raises(UserError, match=r"study\.db: cannot be read as the trials of a search"):
        study.Study(tmp_path / "study.db", {}, {}, tpe=False)


def test_lists_of_images(attack: Attack, tmp_path: Path) -> None:
    """Arrow once unpickled the type that a column names; a pickle is no list either."""
    about = {"ARROW:extension:name": "arrow.py_extension_type"}
    about["ARROW:extension:metadata"] = pickle.dumps(attack).decode("latin-1")
    words = {key: value.encode("latin-1") for key, value in about.items()}
    field = pa.field("path", pa.string(), metadata=words)
    table = pa.table([["a.png"], ["b"]], schema=pa.schema([field, ("label", pa.string())]))
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.png").touch()
    assert lists.read(tmp_path / "a.parquet").rows == [(b"a.png", "b", "train")]
    for name in ("b.parquet", "b.csv"):
        (tmp_path / name).write_bytes(pickle.dumps(attack))
        with pytest.raises(UserError, match=rf"b\.{name[2:]}: the list cannot be read"):
            lists.read(tmp_path / name)


TAGS = [
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/new:subprocess.Popen [['touch', '{}']]",
    "!!python/name:os.system",
    "a: &a [!!python/object/apply:os.system ['touch {}']]",
]


@pytest.mark.parametrize("tag", TAGS)
def test_yaml(attack: Attack, tmp_path: Path, tag: str) -> None:
    text = tag.format(attack.marker)
    for name in ("params.yaml", "dvc.lock", "space.yaml"):
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml: not valid YAML"):
        config.load(tmp_path)
    with pytest.raises(UserError, match=r"dvc\.lock: not valid YAML"):
        storage.read_yaml(tmp_path / "dvc.lock")
    with pytest.raises(UserError, match=r"space\.yaml: not valid YAML"):
        study.read_space(str(tmp_path / "space.yaml"))
    with pytest.raises(UserError, match="not YAML"):
        config.parsed([f"train.lambda={text}"])
    with pytest.raises(UserError, match=r"--subset: got"):
        config.subset_settings(f"shots={text}")


def test_names_of_code_in_settings(tiny: Path, tmp_path: Path) -> None:
    """What is imported is a file in a registered package, whatever params.yaml says."""
    import yaml

    params = yaml.safe_load((tiny / "params.yaml").read_text())
    for section, name in (("backbone", "os"), ("backbone", "..archives"), ("backbone", "a.b")):
        write_params(tmp_path, params | {section: {"name": name}})
        with pytest.raises(UserError, match=r"backbone\.name: got"):
            workspace(tmp_path)


LOAD = """
import sys, mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
print(len(model.predict(np.zeros((3, 16, 16), np.uint8))))
"""


@pytest.mark.slow
def test_an_mlflow_model(project: Path, attack: Attack, tmp_path: Path) -> None:
    """It has no pickle and loads where MLflow may read none; with a pickle as weights, nowhere."""
    [run] = [r for r in runs(project) if r.info.run_name == "digits-uot-0"]
    abouts = (project / "mlruns").rglob("MLmodel")
    [about] = [path for path in abouts if run.info.run_id in path.read_text()]
    model = Path(shutil.copytree(about.parent, tmp_path / "model"))
    assert not [p for p in model.rglob("*") if p.is_file() and p.read_bytes()[:1] == b"\x80"]

    def load():  # noqa: ANN202
        return call(
            sys.executable, "-c", LOAD, str(model),
            cwd=tmp_path, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false", PYTHONPATH="",
        )  # fmt: skip

    done = load()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "3"
    [evil] = model.rglob("model.safetensors")
    torch.save({"a": attack}, evil)
    facts = storage.read_json(evil.with_name("model.json"))
    changed = hashlib.sha256(evil.read_bytes()).hexdigest()
    storage.write_json(evil.with_name("model.json"), facts | {"sha256": changed})
    done = load()
    assert done.returncode != 0
    assert "UserError" in done.stderr
    assert "does not fit its model.json" in done.stderr


def test_nothing_is_pickled(project: Path, measured: Callable[[str], None]) -> None:
    made = ("mlruns", "models", "pretrained", "embeddings", "selections", "data", "reports",
            "predictions")  # fmt: skip
    found = [p for folder in made for p in (project / folder).rglob("*") if p.is_file()]
    assert len(found) > 50
    assert not [p for p in found if p.suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib")]
    assert not [p for p in found if p.read_bytes()[:2] in (b"\x80\x04", b"\x80\x05")]
    measured(f"{len(found)} files of a whole pipeline, its runs and models: 0 pickles")
