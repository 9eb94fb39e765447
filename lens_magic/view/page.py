"""A run, or two, as a stand-alone HTML page: the explorer with all data, their texts, and a table in case scripts are off."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..paths import path_of
from ..writing import written_whole
from . import bundle
from .data import Packed, on_show, pack
from .static_table import tables_html
from .text import JOINERS, visible

if TYPE_CHECKING:
    from ..lens.run import LensRun

EXCERPT = 2000


def page_html(
    run: LensRun, compare: LensRun | None = None, names: tuple[str, str] | None = None, apart: NDArray[Any] | None = None
) -> str:
    """Return a self-contained HTML document with the explorer and all data: it opens from disk and loads nothing else.

    `compare` is a second run to show beside the first, `names` the names of the two, and `apart` is KL(run ‖ compare) of
    every cell, nats, ``[site, layer, position]``.

    Its Content-Security-Policy allows no network at all and only this page's own script, by hash. Token text is
    inside JSON with every `<` escaped, so no token can close the element it is in.
    """
    shown = on_show(run, compare, names, apart)
    packs = [pack(*one) for one in shown]
    data = json.dumps([_encoded(packed) for packed in packs], ensure_ascii=False, separators=(",", ":"))
    script = f"\n{bundle.script()}\n{_BOOT}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    made = dict.fromkeys(packed.header["how"] or "logit lens" for packed in packs)
    title = escape(f"{run.model} – {' and '.join(made)}")
    passages = "\n".join(dict.fromkeys(_passage(one.run) for one in shown))  # the same text once
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{_PAGE_STYLE}{bundle.style()}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{passages}
<div id="lens"></div>
<noscript>{tables_html(shown)}</noscript>
</main>
<script type="application/json" id="lens-data">{_inert(data)}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def write_page(path: str | Path, run: LensRun, **beside: Any) -> Path:
    """Write :func:`page_html` to a file and return its path.

    Raises:
        LensError: it cannot be written there.
    """
    with written_whole(path) as partial:
        partial.write_text(page_html(run, **beside), encoding="utf-8")
    return path_of(path)


def _encoded(packed: Packed) -> dict[str, Any]:
    buffers = {name: base64.b64encode(b).decode() for name, b in packed.to_bytes().items()}
    return {"header": packed.header, "buffers": buffers}


def _inert(data: str) -> str:
    """Return equivalent JSON that cannot end a script element or open a comment in it."""
    return data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _passage(run: LensRun) -> str:
    """The prompt and, marked, its continuation, as readable text."""
    start = "… " if len(run.prompt) > EXCERPT else ""
    end = " …" if len(run.text) > EXCERPT else ""
    before, after = _running(run.prompt[-EXCERPT:]), _running(run.text[:EXCERPT])
    answer = re.sub(r"^([ \t]*\n)+", "", after)  # its bar stands before its first word, not at the end of the line before
    return f'<p class="passage" dir="auto">{start}{before}{after.removesuffix(answer)}<mark>{answer}</mark>{end}</p>'


def _running(text: str) -> str:
    """Escape running text: ordinary white space stays, other invisible characters are made visible."""
    return escape(visible(text, keep=" \n\t" + JOINERS)) if text else ""


_PAGE_STYLE = """
:root{color-scheme:light dark}
h1{position:absolute;width:1px;height:1px;margin:0;overflow:hidden;clip-path:inset(50%);white-space:nowrap;user-select:none}
body{margin:0;background:#fff;color:#1f2328;font:15px/1.6 system-ui,sans-serif}
.passage{margin:20px auto 4px;padding:0 12px;max-width:min(2000px,100%);box-sizing:border-box;white-space:pre-wrap;
overflow-wrap:anywhere;max-height:9.6em;overflow:auto;color:#59636e;unicode-bidi:plaintext}
.passage mark{background:none;color:#1f2328;border-inline-start:3px solid #b4500b;padding-inline-start:4px}
.passage mark:empty{border:0;padding:0}
main{--lens-height:max(320px,min(680px,100vh - 440px));max-width:2000px;margin:auto}
@media screen and (prefers-color-scheme:dark){body{background:#14171c;color:#e3e7ec}.passage{color:#9aa4af}
.passage mark{color:#e3e7ec;border-color:#f5a35c}}
@media (forced-colors:active){.passage mark{forced-color-adjust:none;color:CanvasText;text-decoration:underline}}
@media print{main{--lens-height:460px}.passage{max-height:none;overflow:visible}}
"""

# decodeURIComponent and fetch are not needed: atob gives bytes as characters, and the policy forbids fetching.
_BOOT = """
const packs = JSON.parse(document.getElementById("lens-data").textContent);
for (const { buffers } of packs) {
  for (const [name, text] of Object.entries(buffers)) {
    const characters = atob(text);
    const bytes = new Uint8Array(characters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
    buffers[name] = bytes;
  }
}
// After a long prompt, the answer is what is read first: its beginning is in view, with the end of the prompt above it.
for (const passage of document.querySelectorAll(".passage")) {
  const answer = passage.querySelector("mark");
  if (passage.scrollHeight > passage.clientHeight) passage.tabIndex = 0; // without, Safari does not scroll it by keyboard
  if (answer.textContent) passage.scrollTop = answer.offsetTop - passage.offsetTop - passage.clientHeight / 2;
}
const began = performance.now();
mount(document.getElementById("lens"), packs[0], { compare: packs[1] });
// A page has no other use for the key, and its reader may not have been in the table yet.
addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target !== document.body || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  document.querySelector("#lens [role=combobox]")?.focus();
});
// A task after the next frame: by then it has been painted.
requestAnimationFrame(() => setTimeout(() => performance.measure("lens-first-paint", { start: began })));
"""
