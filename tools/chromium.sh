#!/bin/sh
# Gets the browser the browser tests drive, where that can be done unasked; where not, those tests say so and are skipped.
set -u
cd "$(dirname "$0")/.."
for name in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
[ -n "$(find "${PLAYWRIGHT_BROWSERS_PATH:-$HOME/.cache/ms-playwright}" -maxdepth 1 -name 'chromium-*' 2>/dev/null)" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "chromium: installing the distribution's package"
    (apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium fonts-dejavu-core) \
        >/dev/null 2>&1 && exit 0
fi
echo "chromium: asking Playwright's installer"
timeout 300 .venv/bin/python -m playwright install chromium >/dev/null 2>&1 ||
    echo "chromium: none to be had; the browser tests will be reported as skipped"
exit 0
