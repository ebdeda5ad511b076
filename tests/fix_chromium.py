"""A real browser, without a screen.

chromium  ``chromium(url)`` is the document of a page after the browser has read and run it
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

LONGEST = 90.0  # seconds; the first start of a browser on a machine that does much else


@pytest.fixture
def chromium(tmp_path: Path) -> Callable[[str], str]:
    """Open a page; what needs it is skipped, and says so, where there is no browser."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None and os.environ.get("REQUIRE_CHROMIUM"):
        pytest.fail("Chromium is not installed: apt-get install chromium")
    if program is None:
        pytest.skip("Chromium is not installed; on Debian: apt-get install chromium")

    def open_page(url: str) -> str:
        said = subprocess.run(
            [
                program,
                "--headless=new",
                "--no-sandbox",  # root has none, and the page is our own
                "--disable-gpu",
                "--disable-dev-shm-usage",  # 64 MB in a container
                "--no-first-run",
                "--no-proxy-server",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--dump-dom",
                url,
            ],
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        return said.stdout

    return open_page
