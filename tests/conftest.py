"""Fixtures of all tests; each ``fix_*.py`` beside this file is one family of them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# What the developer has set must not decide whether a test passes.
for _name in list(os.environ):
    if _name == "EMBEDWORKER_EVAL_DATA":  # where the retrieval sets are
        continue
    if _name.startswith(("EMBEDWORKER_", "PG")) or _name == "DATABASE_URL":
        del os.environ[_name]

# A shell ignores it for what runs in the background, and all that is started here would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# So does nohup. What is not ignored but handled is as usual again in what is started here.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# Threads of OpenMP that wait busily keep the processors from the models of other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# At 19, the default, four busy processes on two cores kept a worker from one batch for 90 s.
os.environ["EMBEDWORKER_NICE"] = "0"

pytest_plugins = sorted(file.stem for file in Path(__file__).parent.glob("fix_*.py"))

# Their many cases take a minute and a half of `make test` on two cores; the marked ones stay in it.
BROAD = {
    "test_alembic",
    "test_capture_tables",
    "test_ddl",
    "test_large_work",
    "test_loopback",
    "test_mark",
    "test_matching",
    "test_query_security",
    "test_statistics",
    "test_status_counters",
    "test_timeouts",
    "test_trust",
}

settings.register_profile("here", deadline=None)  # a loaded machine is no fault of the code
settings.load_profile("here")


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Fail a test that leaves variables to those after it, which inherit them in processes."""
    before = dict(os.environ)
    yield
    changed = {name for name, _ in before.items() ^ os.environ.items()}
    # Ray, scikit-learn (KMP) and torch set some of their own when they are first used.
    changed = {
        name for name in changed if not name.startswith(("PYTEST_", "RAY_", "KMP_", "TORCH"))
    }
    assert not changed, f"the test changed the environment: {', '.join(sorted(changed))}"


def pytest_xdist_auto_num_workers() -> int:
    """Run one process more than there are processors, which were idle for 15 % of the time."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of real processes and of many cases as slow, but for those marked smoke."""
    for item in items:
        many = "acceptance" in item.path.parts or item.path.stem in BROAD
        if many and item.get_closest_marker("smoke") is None:
            item.add_marker("slow")
    _begin_with_the_longest(items)


def _begin_with_the_longest(items: list[pytest.Item]) -> None:
    """Sort files by the time-out of their longest test, then by their number of tests.

    pytest-xdist hands whole files out in this order. A file of minutes that began last would leave
    the other processors idle.
    """
    sizes: dict[Path, list[float]] = {}
    for item in items:
        mark = item.get_closest_marker("timeout")
        size = sizes.setdefault(item.path, [0, 0])
        size[0] = max(size[0], mark.args[0] if mark else 0)
        size[1] += 1
    items.sort(key=lambda item: sizes[item.path], reverse=True)
