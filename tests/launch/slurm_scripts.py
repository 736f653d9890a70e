"""The scripts in ``launch/slurm``, as the verb's renderer makes them. Run as a program it writes them anew."""

from __future__ import annotations

from pathlib import Path

from distune.cli.slurm_script import BatchScript

FOLDER = Path(__file__).resolve().parents[2] / "launch" / "slurm"

_CONFIG = '"${1:?sbatch $0 cfg.yaml}"'
_WORKSPACE = '"distune_workspace/$(basename "$config" .yaml)"'
_MPIRUN = (
    "mpirun",
    "--with-ft",
    "ulfm",
    "--bind-to",
    "none",
    "--map-by",
    "slot:OVERSUBSCRIBE",
    "-n",
    '"$SLURM_NTASKS"',
)

SCRIPTS = {
    "single_node.sbatch": BatchScript([_CONFIG], [_WORKSPACE], "distune", 1, 8, "4:00:00", "python", "np"),
    "multi_node_srun.sbatch": BatchScript([_CONFIG], [_WORKSPACE], "distune", 2, 8, "4:00:00", "python", "srun"),
    "multi_node_mpirun.sbatch": BatchScript(
        [_CONFIG], [_WORKSPACE], "distune", 2, 8, "4:00:00", "python", "mpirun", _MPIRUN
    ),
    "array.sbatch": BatchScript(['"$@"'], [_WORKSPACE], "distune", 1, 8, "4:00:00", "python", "np"),
}

if __name__ == "__main__":
    for name, script in SCRIPTS.items():
        (FOLDER / name).write_text(script.text())
        (FOLDER / name).chmod(0o755)
