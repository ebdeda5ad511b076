"""A worker says which number format it chose and why: in its log and to ``embed.doctor()``."""

import re
from pathlib import Path

import pytest
from fix_database import Connection
from fix_worker import Workers
from oracle import wait_settled
from tiny_models import save_model

from embedworker.model.cpu import has_bfloat16


def test_the_log_and_doctor_have_the_times(
    shop: Connection, workers: Workers, tmp_path: Path
) -> None:
    if not has_bfloat16():
        pytest.skip("this processor has no bfloat16, so no format is timed")
    folder = str(save_model(tmp_path / "tiny"))
    shop.execute("select embed.add_model(%s, 32)", [folder])
    shop.execute("create table article (id integer primary key, content text)")
    shop.execute("insert into article values (1, 'one')")
    shop.execute("select embed.enable('article', array['content'], model => %s)", [folder])
    worker = workers.start()
    wait_settled(shop, "article")
    said = re.findall(
        r"INFO +embedworker\.\S+: a batch takes ([\d.]+) ms in float32, ([\d.]+) ms in bfloat16"
        r" with \d+ threads: (\w+) is used",
        worker.output(),
    )
    (exact, half, used), *_ = said
    found = shop.execute(
        """select detail from embed.doctor() where "check" = 'model' and detail like '%/tiny, %'"""
    ).fetchone()
    assert found is not None
    shown = f"(a batch: float32 {exact} ms, bfloat16 {half} ms)"
    assert found[0].endswith(f"/tiny, 32 dimensions, {used} on cpu {shown}")
