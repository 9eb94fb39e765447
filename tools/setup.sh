#!/bin/sh
# Makes .venv with every pinned dependency, the package and its kernel specification. Does nothing where nothing changed.
# Needs Python 3.11 or later with its venv module; no compiler, no MPI, no GPU.
set -eu
cd "$(dirname "$0")/.."

TORCH=2.13.0
PYTHON=${PYTHON:-python3}
VENV=.venv
STAMP=$VENV/.lens-magic-setup

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: Python 3.11 or later is needed; $("$PYTHON" --version) was found (PYTHON=… names another)" >&2
    exit 1
}

if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then device=gpu; else device=cpu; fi

# A setup is the same if what it was made from is, where it stands, and what it is for.
state=$( (pwd; "$PYTHON" --version; echo "$device"; cat pyproject.toml constraints.txt tools/setup.sh kernels/lens/kernel.json) | cksum)
if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$state" ]; then
    exit 0
fi

echo "setup: making $VENV"
rm -f "$STAMP"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

# torch first and alone: an open range would draw gigabytes of CUDA packages onto a machine without a GPU.
installed=$("$VENV/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true)
if [ "$device $installed" = "gpu $TORCH+cpu" ]; then # a GPU has come since; pip takes that build for the same release
    pip uninstall --quiet --yes torch
    installed=
fi
case "$installed" in
    "$TORCH" | "$TORCH"+*) ;;
    *)
        if [ "$device" = gpu ]; then
            pip install --quiet "torch==$TORCH"
        else
            # The CPU build: from the index in use where it has one, else from PyTorch's own, else the default build.
            pip install --quiet "torch==$TORCH+cpu" 2>/dev/null ||
                pip install --quiet --retries 1 "torch==$TORCH+cpu" --extra-index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
                pip install --quiet "torch==$TORCH"
        fi
        ;;
esac

# DeepSpeed would ask which of its kernels can be compiled for the GPU, of which none is, and fail without a CUDA toolkit.
export DS_IGNORE_CUDA_DETECTION=1
pip install --quiet --constraint constraints.txt hatchling editables
pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[lab,test]'
# As pip does with what it installs. Where Python is told to write no bytecode, every rank would compile the package anew.
"$VENV/bin/python" -m compileall -q lens_magic
printf '%s' "$state" > "$STAMP"
echo "setup: done; $VENV/bin/lens-magic doctor says what is there"
