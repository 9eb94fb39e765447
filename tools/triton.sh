#!/bin/sh
# Gets Triton, where that can be done unasked: its interpreter and its compiler try the GPU's kernels on a machine without a GPU.
# It goes beside .venv and not into it, as DeepSpeed imports it on every rank wherever it finds it.
set -u
cd "$(dirname "$0")/.."
TRITON=3.8.0

.venv/bin/python -c 'import sys; from importlib.util import find_spec; sys.exit(find_spec("triton") is None)' && exit 0
[ -d ".triton/triton-$TRITON.dist-info" ] && exit 0
echo "triton: installing triton==$TRITON into .triton"
rm -rf .triton
.venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps --target .triton "triton==$TRITON" \
    >/dev/null 2>&1 || echo "triton: none to be had; the tests of the GPU's kernels will be reported as skipped"
exit 0
