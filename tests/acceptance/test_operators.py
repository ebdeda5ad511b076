"""examples/grafana.json and alerts.yml: every metric and label is in a scrape of a live worker."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import yaml
from fix_worker import Workers
from monitored import Monitored
from oracle import wait_settled
from prometheus_client.parser import text_string_to_metric_families

from embedworker.cli.app import app
from embedworker.model.catalog import TESTING_MODEL
from embedworker.search.functions import query_vector

EXAMPLES = Path(__file__).parents[2] / "examples"
BOARD: dict[str, Any] = json.loads((EXAMPLES / "grafana.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((EXAMPLES / "alerts.yml").read_text())["groups"][0][
    "rules"
]
PLACED = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")


def expressions() -> Iterator[tuple[str, str]]:
    """Each expression, with the texts that name labels of its result."""
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]
    for rule in RULES:
        yield rule["expr"], rule["annotations"]["summary"]


def labels_of(expression: str) -> set[str]:
    """Labels that an expression names, in selectors and in groups."""
    groups = re.findall(r"\bby \(([^)]*)\)", expression)
    return {name.strip() for group in groups for name in group.split(",")} | set(
        re.findall(r"[{,]\s*(\w+)\s*=", expression)
    )


def test_every_metric_and_label_is_in_a_live_scrape(
    shop: psycopg.Connection[Any], workers: Workers
) -> None:
    shop.execute("create table article (id integer primary key, content text)")
    shop.execute("insert into article values (1, '좋은 글'), (2, '<<fail>>')")
    shop.execute("select embed.enable('article', array['content'])")
    worker = workers.start(both_lanes=True, up=False, metrics_port="0", max_attempts="1")
    seen = Monitored(worker)
    wait_settled(shop, "article", dead=1)
    query_vector(shop, "무엇을 찾나요?", TESTING_MODEL, timeout=60)
    article = '{name="article",source="public.article"}'
    seen.wait_sample(f"embedworker_queue_dead_rows{article}", lambda value: value == 1)
    seen.wait_sample(f"embedworker_rows_embedded_total{article}", lambda value: value == 1)
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(seen.get("/metrics")[2]):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    found = list(expressions())
    assert len(found) > 15
    for expression, text in found:
        assert expression.count("(") == expression.count(")")
        names = set(re.findall(r"embedworker_\w+", expression))
        assert names, expression
        assert names <= set(labels), expression
        known = set().union(*(labels[name] for name in names))
        assert labels_of(expression) <= known, expression
        placed = set(PLACED.findall(text))
        assert placed <= labels_of(expression), (expression, text)
    assert worker.terminate() == 0


def test_each_alert_says_what_to_do_with_commands_that_there_are() -> None:
    commands = {
        command.callback.__name__ for command in app.registered_commands if command.callback
    }
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        runbook = rule["annotations"]["runbook"]
        assert 3 <= len(runbook.split()) <= 25
        for command in re.findall(r"`embedworker (\w+)", runbook):
            assert command in commands, runbook


def test_the_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        assert panel["description"].endswith(".")
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
