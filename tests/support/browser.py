"""Pages in a real browser: Chromium, without a window."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--enable-logging=stderr",
    "--virtual-time-budget=30000",
    "--dump-dom",
)


@dataclass(frozen=True)
class Visit:
    """What a browser has made of a page.

    Attributes:
        dom: HTML after the scripts have run.
        output: text that the test's own script has given to `say`.
        errors: lines of the console that are errors, refused requests among them.
    """

    dom: str
    output: str
    errors: list[str]


def visit(page: Path, script: str = "", *, width: int = 1200) -> Visit:
    """Open a page, run a script in it when its charts are drawn, and return what became of it.

    Args:
        page: HTML file.
        script: JavaScript; `say(text)` keeps a text, `point(name, x, y)` moves the pointer to data coordinates of the
            figure with this name.
        width: of the window, in pixels.
    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed ({', '.join(_BROWSERS)})")
    copy = page.with_name(f"{page.stem}-visited.html")
    copy.write_text(page.read_text().replace("</body>", f"<script>{_DRIVER % script}</script></body>"))
    profile = f"--user-data-dir={page.with_name('profile')}"
    command = [browser, *_FLAGS, profile, f"--window-size={width},1000", copy.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    output = re.search(r'<pre id="said">(.*?)</pre>', ended.stdout, re.DOTALL)
    console = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    errors = [line for line in console if re.search(r"Uncaught|Refused|rror|violates", line)]
    return Visit(ended.stdout, "" if output is None else output[1], errors)


_DRIVER = """
{
  const said = Object.assign(document.createElement("pre"), { id: "said" });
  const say = (text) => { said.textContent += `${text}\\n`; };
  const point = (name, x, y) => {
    const plot = Bokeh.documents.map((each) => each.get_model_by_name(name)).find((each) => each !== null);
    const view = [...Bokeh.index].find((each) => each.model === plot);
    const area = (view.canvas_view ?? view.canvas).events_el;
    const box = area.getBoundingClientRect();
    const at = { clientX: box.left + view.frame.x_scale.compute(x), clientY: box.top + view.frame.y_scale.compute(y) };
    const options = { ...at, bubbles: true, composed: true, isPrimary: true, pointerId: 1, pointerType: "mouse" };
    for (const type of ["pointerover", "pointermove"]) area.dispatchEvent(new PointerEvent(type, options));
  };
  const timer = setInterval(() => {
    if (document.documentElement.dataset.ready !== "yes") return;
    clearInterval(timer);
    document.body.append(said);
    %s
  }, 50);
}
"""
