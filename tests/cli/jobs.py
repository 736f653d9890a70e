"""Tiny real jobs for the command line: an ONNX model, its data, a configuration."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import yaml
from numpy.typing import NDArray
from onnx import helper

from distune.report.result import RunResult
from tests.backends.onnx_models import model

ROOT = Path(__file__).resolve().parents[2]

SCRIPTED = """\
import fcntl
import time
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


def count():
    with open(FOLDER / "calls.txt", "a+") as calls:
        fcntl.flock(calls, fcntl.LOCK_EX)
        calls.write("x")
        calls.flush()
        calls.seek(0)
        return len(calls.read())


def given(model):
    \"\"\"The next of the given accuracies, the last one for ever; 'raise' is raised.\"\"\"
    values = (FOLDER / "accuracies.txt").read_text().split()
    value = values[min(count(), len(values)) - 1]
    if value == "raise":
        raise ValueError("planted in the user's code")
    return float(value)


def top1(model):
    \"\"\"The real accuracy. The call named in stop_at.txt says that it is there and waits at a gate.\"\"\"
    stop_at = FOLDER / "stop_at.txt"
    if stop_at.exists() and count() == int(stop_at.read_text()):
        with open(FOLDER / "there", "w") as there:
            there.write("x")
        while not (FOLDER / "open").exists():
            time.sleep(0.01)
    data = np.load(FOLDER / "test.npz")
    return float((model(data["x"]).argmax(1) == data["labels"]).mean())
"""

FEATURES, CLASSES = 16, 4
CORRECTIONS = ("fast_bias_correction", "cross_layer_equalization", "adaround")


def chain(planted: str = "", width: int = 16, seed: int = 0) -> onnx.ModelProto:
    """fc1, relu1, fc2, relu2, fc3.

    Args:
        planted: A Gemm whose every output channel has one huge weight on an input that is always zero: exact in fp32,
            while in 8 bits per channel all its other weights become zero.
    """
    rng = np.random.default_rng(seed)
    sizes = (FEATURES + 1, width, width, CLASSES)
    constants: dict[str, Any] = {}
    nodes = []
    previous = "x"
    for index in range(3):
        weight = rng.normal(size=(sizes[index + 1], sizes[index])) / np.sqrt(sizes[index])
        bias = rng.normal(size=sizes[index + 1]) / 10
        if index:
            weight[:, -1] = 0.0
        if f"fc{index + 1}" == planted:
            weight[:, -1] = 1e4
        if index < 2:
            weight[-1], bias[-1] = 0.0, -1.0  # the last channel is zero behind its Relu, always
        constants |= {f"w{index}": weight, f"b{index}": bias}
        inner = f"h{index}" if index < 2 else "y"
        nodes.append(
            helper.make_node("Gemm", [previous, f"w{index}", f"b{index}"], [inner], f"fc{index + 1}", transB=1)
        )
        if index < 2:
            nodes.append(helper.make_node("Relu", [inner], [f"r{index}"], f"relu{index + 1}"))
            previous = f"r{index}"
    constants = {name: value.astype(np.float32) for name, value in constants.items()}
    return model(nodes, {"x": ["batch", FEATURES + 1]}, ["y"], constants)


def features(count: int, seed: int) -> NDArray[np.float32]:
    """Samples for ``chain``: the last feature is always zero."""
    samples = np.random.default_rng(seed).normal(size=(count, FEATURES + 1)).astype(np.float32)
    samples[:, -1] = 0.0
    return samples


@dataclass
class Job:
    """A folder with ``cfg.yaml`` and all that it names."""

    folder: Path
    document: dict[str, Any]

    @property
    def config(self) -> Path:
        """The configuration, written anew."""
        path = self.folder / "cfg.yaml"
        path.write_text(yaml.safe_dump(self.document, sort_keys=False))
        return path

    @property
    def workspace(self) -> Path:
        """Where it runs unless told otherwise."""
        return self.folder / "workspace"

    @property
    def calls(self) -> int:
        """How often the scripted ``eval_func`` was called."""
        calls = self.folder / "calls.txt"
        return len(calls.read_text()) if calls.exists() else 0

    def arguments(self, *more: str, workspace: Path | None = None) -> list[str]:
        """Of ``distune``."""
        return ["run", str(self.config), "--workspace", str(workspace or self.workspace), *more]

    def command(self, *more: str, workspace: Path | None = None) -> list[str]:
        """Of the shell."""
        return [sys.executable, "-m", "distune", *self.arguments(*more, workspace=workspace)]

    def result(self, workspace: Path | None = None) -> RunResult:
        """``result.json``, read back."""
        return RunResult.from_json(((workspace or self.workspace) / "result.json").read_text())


def plain(folder: Path, proto: onnx.ModelProto | None = None, *, isolation: str = "none") -> Job:
    """Quantized and not judged: no evaluation is given."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(proto or chain(), folder / "model.onnx")
    np.savez(folder / "calib.npz", x=features(64, 1), labels=np.zeros(64, np.int64))
    data = {"batch_size": 16, "dataset": {"Npz": {"path": "calib.npz", "inputs": "x", "label": "labels"}}}
    return Job(
        folder,
        {
            "model": {"name": "chain", "framework": "onnxruntime", "path": "model.onnx"},
            "quantization": {
                "approach": "post_training_static_quant",
                "calibration": {"sampling_size": 64, "dataloader": data},
                "recipes": dict.fromkeys(CORRECTIONS, False),  # they would mend what is planted here
            },
            "evaluation": {"performance": {"warmup": 1, "iteration": 20}},
            "tuning": {"strategy": {"name": "basic"}, "isolation": isolation},
        },
    )


def scripted(folder: Path, *accuracies: float | str, isolation: str = "none") -> Job:
    """Judged by an ``eval_func`` that gives ``accuracies`` one after the other, the last one for ever."""
    job = plain(folder, isolation=isolation)
    (folder / "accuracies.txt").write_text("\n".join(map(str, accuracies)))
    (folder / "score.py").write_text(SCRIPTED)
    job.document["evaluation"]["accuracy"] = {"eval_func": "score.py:given"}
    job.document["tuning"]["accuracy_criterion"] = {"absolute": 0.1}
    job.document["tuning"]["search"] = "linear"  # one trial after the other, as the accuracies are given
    return job


def judged(folder: Path, planted: str = "", *, samples: int = 400, isolation: str = "none") -> Job:
    """Judged by top-1 on what the fp32 model itself predicts: the fp32 accuracy is 1."""
    import onnxruntime as ort

    job = plain(folder, chain(planted), isolation=isolation)
    inputs = features(samples, 2)
    logits = ort.InferenceSession(folder / "model.onnx").run(None, {"x": inputs})[0]
    np.savez(folder / "test.npz", x=inputs, labels=logits.argmax(1))
    data = {"batch_size": 100, "dataset": {"Npz": {"path": "test.npz", "inputs": "x", "label": "labels"}}}
    job.document["evaluation"]["accuracy"] = {"metric": {"topk": 1}, "dataloader": data}
    job.document["tuning"]["accuracy_criterion"] = {"absolute": 0.05}
    job.document["tuning"]["refine_trials"] = 0  # what it takes is decided by measured latency: no two runs need agree
    return job


def gated(folder: Path, stop_at: int | None = None, *, isolation: str = "process") -> Job:
    """``judged`` with a planted bad op, by an ``eval_func`` that stops at its ``stop_at``-th call: see ``running``."""
    job = judged(folder, "fc2", isolation=isolation)
    (folder / "score.py").write_text(SCRIPTED)
    job.document["evaluation"]["accuracy"] = {"eval_func": "score.py:top1"}
    if stop_at is not None:
        (folder / "stop_at.txt").write_text(str(stop_at))
        os.mkfifo(folder / "there")
    return job


def open_gate(job: Job) -> None:
    """Let the trial at the gate go on, where it is still there."""
    (job.folder / "open").touch()


@contextmanager
def running(job: Job, command: list[str], **more: str) -> Iterator[subprocess.Popen[str]]:
    """A run that has come to its gate. It, and all that it started, is killed at the end if it still lives."""
    process = subprocess.Popen(
        command, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        _await(job.folder / "there", process)
        yield process
    finally:
        kill(process)
        process.communicate(timeout=60)


def _await(fifo: Path, process: subprocess.Popen[str]) -> None:
    """Until something was written into ``fifo``; an error where the process ends before."""
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while not select.select([end], [], [], 0.2)[0]:
            if process.poll() is not None:
                raise AssertionError(f"ended with {process.returncode} before its gate: {process.communicate()[1]}")
    finally:
        os.close(end)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a process and to all that it started, as a power cut would."""
    try:
        root = psutil.Process(process.pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=30)


def environment(**more: str) -> dict[str, str]:
    """Of a process of its own."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def start(
    command: list[str], *, seconds: float = 120, folder: Path = ROOT, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, timeout=seconds, check=False, cwd=folder
    )


def distune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m distune`` with ``arguments`` in ``folder``."""
    return start([sys.executable, "-m", "distune", *arguments], folder=folder)
