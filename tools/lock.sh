#!/bin/sh
# Writes constraints.txt from what is installed in .venv.
set -eu
cd "$(dirname "$0")/.."
{
    echo "# Every version \`make setup\` installs, as a constraints file; torch is pinned in tools/setup.sh, which chooses its build."
    echo "# Made by tools/lock.sh; pyproject.toml has the ranges the package works with."
    .venv/bin/python -m pip freeze --exclude-editable | grep -vE '^(torch|pip|setuptools|wheel)==' | sort -f
} > constraints.txt.new
mv constraints.txt.new constraints.txt
