"""JSON whose numbers stay what the server wrote, also where a float has too few digits."""

import json
from collections.abc import Collection
from decimal import Decimal
from typing import Any

__all__ = ["dumps", "loads", "loads_row"]


def loads(text: str | bytes) -> Any:
    """Read JSON as :func:`json.loads` does; a number that no float holds is a Decimal."""
    return _with_floats(json.loads(text, parse_float=Decimal))


def loads_row(text: str, numeric: Collection[str]) -> dict[str, Any]:
    """Read a row by column; the columns in ``numeric`` are Decimals, as psycopg has them."""
    row = json.loads(text, parse_float=Decimal)
    return {
        name: Decimal(value)
        if name in numeric and isinstance(value, int | Decimal)
        else _with_floats(value)
        for name, value in row.items()
    }


def dumps(value: Any, **options: Any) -> str:
    """Write JSON; a Decimal becomes a number, or text where no float holds it."""
    return json.dumps(value, default=_plain, **options)


def _with_floats(value: Any) -> Any:
    match value:
        case Decimal():
            return _float(value)
        case dict():
            return {name: _with_floats(item) for name, item in value.items()}
        case list():
            return [_with_floats(item) for item in value]
    return value


def _float(value: Decimal) -> float | Decimal:
    number = float(value)
    return number if Decimal(repr(number)) == value else value


def _plain(value: Any) -> float | str:
    number = _float(value) if isinstance(value, Decimal) else value
    return number if isinstance(number, float) else str(number)
