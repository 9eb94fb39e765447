"""How fast the explorer is on the largest run it is made for: first paint, frames while scrolling, drawing all anew.

python -m benchmarks.explorer [--width 1200] [--height 800] [--rounds 5]

Drives Chromium (playwright). Beside the time of a frame stands the processor time of the page's own thread, which a busy
machine changes less: 1,500 tokens × 80 layers × 3 sites × 5 candidates, made of random numbers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lens_magic.view import page_html
from tests.chromium import launch
from tests.fake_run import fake_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

FRAMES = 120
LONG_MS = 25  # a longer frame was missed: the screen shows one every 16.7 ms
DIRECTIONS = {
    "down, 60 pixels a frame": (0, 60),
    "up, 60 pixels a frame": (0, -60),
    "right, 40 pixels a frame": (40, 0),
    "left, 40 pixels a frame": (-40, 0),
    "both, 54 pixels a frame": (30, 45),
    "almost a page a frame (400 pixels)": (0, 400),
}

# Scrolls by (dx, dy) per frame and returns how long the frames took, in ms.
SCROLL = """async ([dx, dy, frames]) => {
  const grid = document.querySelector("[role=grid]");
  grid.scrollTo(dx < 0 ? 1e6 : 0, dy < 0 ? 1e7 : 0);
  const times = [];
  let last = await new Promise(requestAnimationFrame);
  for (let i = 0; i < frames; i++) {
    grid.scrollBy(dx, dy);
    const now = await new Promise(requestAnimationFrame);
    times.push(now - last);
    last = now;
  }
  return times;
}"""
REDRAW = """() => {
  const began = performance.now();
  document.querySelector("[aria-label='Larger cells']").click();
  document.querySelector("[aria-label='Smaller cells']").click();
  return (performance.now() - began) / 2;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "large.html"
        path.write_text(page_html(fake_run(1500, 80, vocabulary=20_000)), encoding="utf-8")
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": options.width, "height": options.height})
        measure(page, path.as_uri(), options.rounds)
        browser.close()


def measure(page: Page, address: str, rounds: int) -> None:
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def busy() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return 1000 * float(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))

    paints = []
    for _ in range(rounds):
        page.goto(address)
        page.wait_for_function("() => performance.getEntriesByName('lens-first-paint').length")
        paints.append(page.evaluate("() => performance.getEntriesByName('lens-first-paint')[0].duration"))
    page.wait_for_timeout(300)
    print(f"first paint {_spread(paints)} ms, median and range of {rounds} rounds here and below")
    redraws = [page.evaluate(REDRAW) for _ in range(rounds)]
    print(f"the whole table drawn anew {_spread(redraws)} ms")
    for name, (dx, dy) in DIRECTIONS.items():
        medians, longs, processor = [], [], []
        for _ in range(rounds):
            before = busy()
            times = page.evaluate(SCROLL, [dx, dy, FRAMES])
            processor.append((busy() - before) / FRAMES)
            medians.append(statistics.median(times))
            longs.append(sum(time > LONG_MS for time in times))
        print(
            f"{name:>35}: frame {_spread(medians)} ms, over {LONG_MS} ms {statistics.median(longs):.0f} "
            f"({min(longs)} – {max(longs)}) of {FRAMES}, processor {_spread(processor)} ms a frame"
        )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} – {max(values):.1f})"


if __name__ == "__main__":
    main()
