"""docs/tutorial.md, run from its first line to its last as a person would."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from fix_cli import embedworker
from waiting import wait_until

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
LONGEST = 90.0  # seconds for one block on a machine that does much else
END = "end of the block"


class Block(NamedTuple):
    """What is typed, and what the page says will be seen."""

    typed: str
    seen: str | None


def blocks() -> Iterator[Block]:
    """Those of the page, as lines for a shell; SQL goes through psql."""
    found = re.findall(
        r"```(console|sql)\n(.*?)```(?:\n```text\n(.*?)```)?", PAGE.read_text(), re.S
    )
    for kind, code, result in found:
        if kind == "sql":
            yield Block(
                f"psql \"$url\" -X -v ON_ERROR_STOP=1 <<'SQL' 2>&1\n{code}SQL\n", result or None
            )
            continue
        lines = code.splitlines()
        commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        seen = "\n".join(line for line in lines if not line.startswith("$ "))
        # What is in the background must not hold the pipe, and says nothing on the terminal.
        typed = "\n".join(c if c.endswith("&") else f"{{ {c}; }} 2>&1" for c in commands)
        yield Block(typed + "\n", seen)


class Shell:
    """One bash for the whole page, so that $! and the current folder last."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def type(self, code: str) -> tuple[str, int]:
        """Return what was written, and the exit code of the last command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f'{code}\necho "{END} $?"\n')
        self._process.stdin.flush()
        lines: list[str] = []
        for line in self._process.stdout:
            if line.startswith(END):
                return "".join(lines), int(line.split()[-1])
            lines.append(line)
        raise AssertionError(f"the shell ended after {code}: {''.join(lines)}")

    def end(self) -> None:
        """Let it go, and what it has in the background with it."""
        assert self._process.stdin is not None
        self._process.stdin.write("kill $(jobs -p) 2>/dev/null; wait\n")
        self._process.stdin.close()
        assert self._process.stdout is not None
        self._process.stdout.read()
        self._process.stdout.close()
        self._process.wait(timeout=LONGEST)


def fits(said: str, seen: str) -> bool:
    """Whether it is what the page shows; ``…`` stands for anything, also for several lines."""
    pattern = r"[\s\S]*".join(re.escape(part) for part in seen.strip().split("…"))
    return re.fullmatch(pattern, said.strip()) is not None


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("bundled_model")
def test_every_block(server_folder: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "embedworker"
    program.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m embedworker.cli "$@"\n'
    )
    program.chmod(0o755)
    data = server_folder / "tutorial"
    own = {
        "EMBEDWORKER_DATA_DIR": str(data),
        "EMBEDWORKER_QUERY_TIMEOUT": "60",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
    }
    environment = {
        **os.environ,
        **own,
        "PGOPTIONS": "-c embed.query_timeout=60s -c embed.worker_grace=60s",
    }
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    shell = Shell(tmp_path, environment)
    log = tmp_path / "worker.log"
    log.touch()
    done, running = 0, False
    try:
        for block in blocks():
            said, code = shell.type(block.typed)
            assert code == 0, (block.typed, said)
            if block.seen is not None:
                assert fits(said, block.seen), (
                    f"{block.typed}\nsaid:\n{said}\nthe page:\n{block.seen}"
                )
            done += 1
            if "db start" in block.typed:
                (psql,) = data.glob("pg0-*/bin/psql")
                (programs / "psql").symlink_to(psql)
                shell.type('url="$(embedworker db url)"')
            running = running or "embedworker run" in block.typed
            if running and block.typed.startswith(("embedworker run", "psql")):
                wait_until(lambda: _settled(shell), LONGEST)
    except BaseException as error:
        error.add_note(f"the states: {_states(shell)}\nworker.log:\n{log.read_text()}")
        raise
    finally:
        shell.end()
        embedworker("db", "stop", **own)
    assert done >= 15
    assert "Traceback" not in log.read_text()


def _settled(shell: Shell) -> bool:
    """What the page calls a moment later."""
    return set(_states(shell)) == {"ready"}


def _states(shell: Shell) -> list[str]:
    said, _ = shell.type('psql "$url" -XAtc "select state from embed.status" 2>&1')
    return said.splitlines()
