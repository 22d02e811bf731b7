"""The notebooks run, say what they teach, and use nothing but the public surface."""

from __future__ import annotations

import ast
import os
import re
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from helpers_processes import StartedProcess
from helpers_processes import context as processes
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from nbclient import NotebookClient

import attnlens

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = [
    "01_quickstart",
    "02_decay_and_refocus",
    "03_copy_route_and_recovery",
    "04_dilution_theorem",
    "05_your_own_checkpoint",
    "06_lenses",
    "07_other_models",
]
SECONDS_PER_CELL = 240
MOST_BYTES = 400_000
OTHERS = {"matplotlib", "numpy", "pandas", "transformers", "xarray"}
PUBLIC_MODULES = {n for n in attnlens.__all__ if isinstance(getattr(attnlens, n), ModuleType)}
ABSOLUTE = re.compile(
    r"(?<![\w.:/])/(?:home|root|tmp|Users|usr|opt|var|private|work|mnt)/|\b[A-Z]:\\"
)

each = pytest.mark.parametrize("name", NOTEBOOKS)


class OwnKernel(AsyncKernelManager):
    """Starts the interpreter of the tests, whatever kernels are registered."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.provisioner = ForkedProvisioner(parent=self, kernel_spec=self.kernel_spec)

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(argv=["-f", "{connection_file}"], display_name="Python 3")


class ForkedProvisioner(LocalProvisioner):
    """Forks kernels from a process that has imported: that takes a new interpreter ten seconds."""

    async def launch_kernel(self, cmd, **options):
        self.process = StartedProcess(run_kernel, cmd, options["cwd"], options["env"])
        self.pid = self.process.pid
        return self.connection_info


def run_kernel(arguments: list[str], working: str, environment: dict[str, str]) -> None:
    from ipykernel.kernelapp import IPKernelApp

    os.environ.clear()
    os.environ.update(environment, JPY_PARENT_PID=str(os.getppid()))  # ends with its parent
    tempfile.tempdir = None  # imports may have looked it up in the server's environment
    os.chdir(working)
    IPKernelApp.launch_instance(arguments)


@pytest.fixture
def kernel_folder(monkeypatch):
    """A folder for all that a kernel writes; a short path, as those of its sockets are limited."""
    processes()
    with tempfile.TemporaryDirectory(prefix="nb") as folder:
        (Path(folder) / "tmp").mkdir()
        monkeypatch.setenv("TMPDIR", str(Path(folder) / "tmp"))
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            monkeypatch.setenv(name, str(Path(folder) / name.lower()))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.delenv("ATTNLENS_MODEL", raising=False)
        yield Path(folder)


def read(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(name: str):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def execute(notebook, folder: Path, working: Path):
    manager = OwnKernel(connection_file=str(folder / "k.json"))
    if os.name == "posix":  # no port that another process may take first
        manager.transport = "ipc"
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=SECONDS_PER_CELL,
        record_timing=False,
        resources={"metadata": {"path": str(working)}},
    )
    client.execute(cleanup_kc=True)  # or it lives as long as the tests
    return notebook


def kinds(cell) -> list[str]:
    """What a cell shows, apart from warnings: types of data, and text, in however many pieces."""
    shown: list[str] = []
    for output in cell.outputs:
        if output.output_type == "stream":
            shown += ["text"] if output.name == "stdout" and shown[-1:] != ["text"] else []
        else:
            shown += sorted(set(output.get("data", {"error": ""})) - {"image/jpeg"})
    return shown


@each
def test_runs_from_a_clean_kernel_and_shows_what_is_stored(name, kernel_folder):
    before = sorted(path.name for path in FOLDER.iterdir())
    stored = code_cells(name)
    notebook = read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    execute(notebook, kernel_folder, FOLDER)
    fresh = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [kinds(cell) for cell in fresh] == [kinds(cell) for cell in stored]
    assert sorted(path.name for path in FOLDER.iterdir()) == before


def test_a_cell_that_fails_fails_the_test(kernel_folder, tmp_path):
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(notebook, kernel_folder, tmp_path)


def test_the_kernel_is_the_tests_own_interpreter(kernel_folder, tmp_path):
    source = """import os, sys, tempfile
print(sys.executable, os.environ['OMP_NUM_THREADS'], os.getcwd(), tempfile.gettempdir())"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    execute(notebook, kernel_folder, tmp_path)
    shown = notebook.cells[0].outputs[0].text.split()
    assert shown == [sys.executable, "1", os.fspath(tmp_path), os.fspath(kernel_folder / "tmp")]


def test_every_notebook_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NOTEBOOKS


@each
def test_opens_with_what_the_reader_will_learn(name):
    first = read(name).cells[0]
    assert first.cell_type == "markdown"
    lines = first.source.split("\n")
    assert re.match(rf"# {int(name[:2])}\. \w", lines[0])
    assert "**What you will learn**" in lines
    points = [line for line in lines if line.startswith("- ")]
    assert 3 <= len(points) <= 5


@each
def test_stored_outputs_are_there_and_clean(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < MOST_BYTES
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert ids == [f"{name[:2]}-{number:02d}" for number in range(len(ids))]
    assert all(not cell.metadata for cell in notebook.cells)
    counts = [cell.execution_count for cell in code_cells(name)]
    assert counts == list(range(1, len(counts) + 1))
    assert not [
        output
        for cell in code_cells(name)
        for output in cell.outputs
        if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert ABSOLUTE.search(path.read_text(encoding="utf-8")) is None


@each
def test_a_cell_that_shows_something_has_its_output(name):
    for cell in code_cells(name):
        last = ast.parse(cell.source).body[-1]
        prints = any(
            isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            for node in ast.walk(ast.parse(cell.source))
        )
        shows = isinstance(last, ast.Expr) or prints
        assert bool(cell.outputs) == shows, cell.source
        assert "text" in kinds(cell) or not prints, cell.source
        if isinstance(last, ast.Expr) and "plots." in ast.unparse(last):
            assert "image/png" in kinds(cell), cell.source


@each
def test_uses_only_the_public_surface(name):
    source = "\n".join(cell.source for cell in code_cells(name))
    assert not not_public(source)


@pytest.mark.parametrize(
    "source",
    [
        "from attnlens.measures.statistics import mean_interval",
        "import attnlens.models",
        "from attnlens import vlm",
        "import torch",
        "from PIL import Image",
        "from . import helpers",
        "from attnlens.measures import theorems",
        "import attnlens\nattnlens.measures.theorems",
        "import attnlens\nattnlens.experiments.recover",
        "from attnlens import plots as p\np.style.colours()",
        "import attnlens.measures as m\nm.share",
        "vlm._prompt",
    ],
)
def test_what_is_not_public_is_found(source):
    assert not_public(source)


def not_public(source: str) -> list[str]:
    """Names of a notebook's code that are neither public nor of a library that it may use."""
    tree = ast.parse(source)
    found: list[str] = []
    modules: dict[str, str] = {}  # name in the notebook -> public module
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found += [] if _may_import(alias.name) else [alias.name]
                top = alias.name if alias.asname else alias.name.partition(".")[0]
                if top.partition(".")[0] == "attnlens":
                    modules[alias.asname or top] = top
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level or not _may_import(module):
                found.append("." * node.level + module)
            elif module.partition(".")[0] == "attnlens":
                for alias in node.names:
                    name = f"{module}.{alias.name}"
                    found += [] if alias.name in import_module(module).__all__ else [name]
                    if module == "attnlens" and alias.name in PUBLIC_MODULES:
                        modules[alias.asname or alias.name] = name
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        if node.attr.startswith("_"):
            found.append(node.attr)
        dotted = ast.unparse(node.value)
        module = modules.get(dotted, "")
        if not module and dotted.startswith("attnlens."):
            module = dotted if dotted.removeprefix("attnlens.") in PUBLIC_MODULES else ""
        if module and node.attr not in import_module(module).__all__:
            found.append(f"{module}.{node.attr}")
    return found


def _may_import(module: str) -> bool:
    top, _, rest = module.partition(".")
    if top == "attnlens":
        return not rest or rest in PUBLIC_MODULES
    return top in OTHERS or top in sys.stdlib_module_names
