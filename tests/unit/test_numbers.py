"""JSON whose numbers stay what the server wrote."""

from decimal import Decimal

import pytest

from embedworker.database.numbers import dumps, loads, loads_row

LONG = "12345678901234567890.123456789012"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1", 0.1),
        ("1e-5", 1e-5),
        ("1.10", 1.1),
        (LONG, Decimal(LONG)),
        ("1e400", Decimal("1e400")),
        ("12345678901234567890", 12345678901234567890),
        (f'{{"a": [{LONG}, 0.5, "x", null, true]}}', {"a": [Decimal(LONG), 0.5, "x", None, True]}),
    ],
)
def test_a_number_is_a_float_where_that_loses_nothing(text: str, expected: object) -> None:
    found = loads(text)
    assert found == expected
    assert type(found) is type(expected)


def test_numeric_columns_are_decimals() -> None:
    row = loads_row('{"a": 1.10, "b": 5, "c": null, "d": 0.5, "e": "NaN"}', ["a", "b", "c", "e"])
    assert row == {"a": Decimal("1.10"), "b": Decimal(5), "c": None, "d": 0.5, "e": "NaN"}
    assert [type(value) for value in row.values()] == [Decimal, Decimal, type(None), float, str]


def test_written_as_a_number_where_that_loses_nothing() -> None:
    assert dumps([Decimal("1.10"), Decimal(LONG), 0.5]) == f'[1.1, "{LONG}", 0.5]'
