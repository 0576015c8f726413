"""Page about a run: time to write it, its size, and how fast it is in Chromium.

Histories are drawn at random. Each page is written three times, of which the median counts. In the browser, the first
view is the time from the request to the verdict and the timeline, the page is complete with its last chart, and a step
of the slider ends with the second frame after it.
"""

import http.server
import json
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from attnwatch import AttentionHistory
from attnwatch.layers import LayerStatistic
from attnwatch.report.run import write_run_page
from attnwatch.runs import RunRecord
from attnwatch.statistics import Statistic
from benchmarks.common import show

SIZES = {"6 × 12 × 100": (6, 12, 100), "24 × 16 × 300": (24, 16, 300), "96 × 128 × 512": (96, 128, 512)}
GOALS = {"6 × 12 × 100": {"megabytes": 1.5}, "96 × 128 × 512": {"seconds": 2.0, "megabytes": 6.0}}
_REPEATS, _LONGEST = 3, 120.0
_SCRIPT = """
let firstView;
const observer = new MutationObserver(async () => {
  const now = performance.now();
  firstView ??= now;
  if (document.documentElement.dataset.ready !== "yes") return;
  observer.disconnect();
  const slider = document.getElementById("step-0");
  const frame = () => new Promise(requestAnimationFrame);
  const steps = [];
  for (let index = 0; index < 20; index++) {
    const begin = performance.now();
    slider.value = (index * 37) % (Number(slider.max) + 1);
    slider.dispatchEvent(new Event("input"));
    await frame();
    await frame();
    steps.push(performance.now() - begin);
  }
  fetch("/result", { method: "POST", body: JSON.stringify({ firstView, complete: now, steps }) });
});
observer.observe(document.documentElement, { attributes: true });
"""


def measure(quick: bool = False) -> dict[str, Any]:
    """Return, by size (layers × heads × observations), the seconds, megabytes, and milliseconds in the browser.

    Args:
        quick: the smallest size only.
    """
    browser = shutil.which("chromium")
    found = {}
    show(f"\n{'page of a run':<16} {'written':>10} {'size':>10} {'first view':>12} {'complete':>10} {'slider':>10}")
    with tempfile.TemporaryDirectory() as folder:
        write_run_page([_record(2, 2, 8)], Path(folder, "warm-up.html"))
        for name, size in list(SIZES.items())[: 1 if quick else None]:
            found[name] = _measure(size, Path(folder, "page.html"), browser)
            numbers = found[name]
            in_browser = [
                f"{numbers[each]:.0f} ms" if each in numbers else "–"
                for each in ("first_view_ms", "complete_ms", "step_ms")
            ]
            show(
                f"{name:<16} {numbers['seconds']:>8.2f} s {numbers['megabytes']:>7.2f} MB "
                f"{in_browser[0]:>12} {in_browser[1]:>10} {in_browser[2]:>10}"
            )
    return found


def _measure(size: tuple[int, int, int], path: Path, browser: str | None) -> dict[str, float]:
    seconds = []
    for _ in range(_REPEATS):
        record = _record(*size)  # anew, as a verdict is made once for each record
        begin = time.perf_counter()
        write_run_page([record], path)
        seconds.append(time.perf_counter() - begin)
    numbers = {"seconds": statistics.median(seconds), "megabytes": path.stat().st_size / 1e6}
    return numbers if browser is None else numbers | _in_browser(path, browser)


def _record(num_layers: int, num_heads: int, num_steps: int) -> RunRecord:
    drawn = np.random.default_rng(0)
    level = drawn.random((1, num_layers, num_heads), dtype=np.float32) * 0.5 + 0.3
    walk = np.cumsum(drawn.normal(0, 0.01, (num_steps, num_layers, 1)), axis=0).astype(np.float32)
    values = {
        name: np.clip(level + walk + drawn.normal(0, 0.01, (num_steps, num_layers, num_heads)), 0, 1).astype(np.float32)
        for name in Statistic.registry
    }
    values["nonfinite"] = np.zeros_like(values["nonfinite"])
    layers = {
        name: drawn.lognormal(0, 1, (num_steps, num_layers)).astype(np.float32) for name in LayerStatistic.registry
    }
    sites = tuple(f"model.layers.{index}.self_attn" for index in range(num_layers))
    loss = 3 - np.linspace(0, 1, num_steps) + drawn.normal(0, 0.02, num_steps)
    steps = 10 * np.arange(num_steps)
    return RunRecord("run", AttentionHistory(steps, sites, values, loss, total_steps=12 * num_steps, layers=layers))


def _in_browser(path: Path, browser: str) -> dict[str, float]:
    """Return how long the first view takes, and the median of the steps of the slider."""
    page = path.read_text().replace('<meta http-equiv="Content-Security-Policy"', '<meta name="policy"')
    server = _Server(page.replace("</body>", f"<script>{_SCRIPT}</script></body>").encode())
    with tempfile.TemporaryDirectory() as profile:
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1000", f"--user-data-dir={profile}")
        process = subprocess.Popen([browser, *flags, server.url], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            told = server.wait(_LONGEST)
        finally:
            process.terminate()
            process.wait()
            server.close()
    return {
        "first_view_ms": told["firstView"],
        "complete_ms": told["complete"],
        "step_ms": statistics.median(told["steps"]),
    }


class _Server:
    """Server of one page, to which the page tells its result."""

    def __init__(self, page: bytes):
        self._result: dict[str, Any] | None = None
        self._has_result = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(page)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(204)
                self.end_headers()
                server._result = json.loads(body)
                server._has_result.set()

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait(self, seconds: float) -> dict[str, Any]:
        """Return what the page tells.

        Raises:
            TimeoutError: it tells nothing for so many seconds.
        """
        if not self._has_result.wait(seconds) or self._result is None:
            raise TimeoutError(f"the page told nothing for {seconds:.0f} s")
        return self._result

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
