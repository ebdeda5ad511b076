"""A real browser that a test can steer: Chromium's own protocol, over a pipe.

browser  a :class:`Browser` with one page
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

# The browser reads from the file descriptor 3 and writes to 4.
_WITH_PIPES = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_KEYS = {"Tab": 9, "Enter": 13}
# Text whose colour is too near to that of what is behind it (WCAG 2, 1.4.3).
_FAINT = """
(() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const c = parse(getComputedStyle(at).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || !node.getClientRects().length || node.closest("svg")) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push(`${node.tagName} ${contrast.toFixed(2)} ${node.textContent}`);
  }
  return found;
})()
"""


class Browser:
    """One page of a browser without a screen. Each call raises AssertionError if it is refused."""

    def __init__(self, program: str, home: Path) -> None:
        there, mine = os.pipe()
        read_end, write_end = os.pipe()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", _WITH_PIPES, str(there), str(write_end), program),
                "--headless=new",
                "--no-sandbox",  # root has none, and the pages are our own
                "--disable-gpu",
                "--disable-dev-shm-usage",  # 64 MB in a container
                "--no-first-run",
                "--no-proxy-server",
                f"--user-data-dir={home / 'profile'}",
                "--remote-debugging-pipe",
            ],
            env={**os.environ, "HOME": str(home), "LANG": "en_US.UTF-8"},
            pass_fds=(there, write_end),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(write_end)
        self._to = os.fdopen(mine, "wb", buffering=0)
        self._from = os.fdopen(read_end, "rb")
        self._number = 0
        self._said: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self._call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        self.process.terminate()
        self.process.wait()
        self._to.close()
        self._from.close()

    def size(self, width: int, height: int, scheme: str = "light") -> None:
        """Give the page a size in pixels, and the preference for light or dark."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self._call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def open(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        self._said.clear()
        answer = self._call("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        while not any(said["method"] == "Page.loadEventFired" for said in self._said):
            self._hear()

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is waited for."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self) -> str:
        """What stands on the page."""
        return str(self.evaluate("document.body?.innerText ?? ''"))

    def unnamed(self) -> list[str]:
        """Links, buttons and fields for which a screen reader has no name."""
        roles = {"link", "button", "textbox", "searchbox", "combobox", "checkbox", "image"}
        roles |= {"progressbar", "region", "navigation"}
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [
            node["role"]["value"]
            for node in nodes
            if not node.get("ignored")
            and node["role"]["value"] in roles
            and not node.get("name", {}).get("value", "").strip()
        ]

    def faint(self) -> list[str]:
        """Texts with less contrast than 4.5 to 1."""
        found: list[str] = self.evaluate(_FAINT)
        return found

    def violations(self) -> list[str]:
        """What axe-core finds: each broken rule with the elements that break it."""
        source = resources.files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
        self._call("Runtime.evaluate", expression=source)
        found = self.evaluate("axe.run().then(r => JSON.stringify(r.violations))")
        return [
            f"{broken['id']}: {node['html']} {node['failureSummary']}"
            for broken in json.loads(found)
            for node in broken["nodes"]
        ]

    def blocked(self) -> list[str]:
        """What the browser has complained of since the page was opened."""
        return [
            said["params"]["entry"]["text"]
            for said in self._said
            if said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error"
        ]

    def press(self, key: str) -> None:
        """Press a key: Tab or Enter."""
        text = {"text": "\r"} if key == "Enter" else {}
        code = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        self._call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", **code)

    def write(self, text: str) -> None:
        """Write into the field that has the focus."""
        self._call("Input.insertText", text=text)

    def picture(self, file: Path) -> None:
        """Write what is seen of the page as PNG."""
        data = self._call("Page.captureScreenshot", format="png")["data"]
        file.write_bytes(base64.b64decode(data))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        asked: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            asked["sessionId"] = self._session
        self._to.write(json.dumps(asked).encode() + b"\0")
        while True:
            said = self._hear()
            if said.get("id") == self._number:
                assert "error" not in said, (method, said)
                result: dict[str, Any] = said["result"]
                return result

    def _hear(self) -> dict[str, Any]:
        """The next message; the time-out of the test ends a wait for nothing."""
        heard = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            assert byte, f"the browser has ended: {self.process.poll()}"
            heard += byte
        said: dict[str, Any] = json.loads(heard)
        if "method" in said:
            self._said.append(said)
        return said


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """Skipped, and says so, where there is no Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None and os.environ.get("REQUIRE_CHROMIUM"):
        pytest.fail("Chromium is not installed: apt-get install chromium")
    if program is None:
        pytest.skip("Chromium is not installed; on Debian: apt-get install chromium")
    opened = Browser(program, tmp_path)
    yield opened
    opened.close()
