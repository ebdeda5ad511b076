"""SQLModel's classes, which are pydantic's, too."""

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from fix_vectors import VectorWriter
from pydantic.errors import PydanticUserError
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlmodel import Field, Session, SQLModel, select

from embedworker.integrations.declaration import declarations, outside_of_classes
from embedworker.integrations.sqlalchemy import Embedded, enable_all, search


class Entry(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    title: str
    embedding: ClassVar[Any] = Embedded("title")


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    made = create_engine(database.replace("://", "+psycopg://"))
    with made.begin() as connection:
        SQLModel.metadata.create_all(connection)
        enable_all(connection, SQLModel.metadata)
    yield made
    made.dispose()


def test_a_class_variable_declares(engine: Engine, vectors: VectorWriter) -> None:
    with Session(engine) as session:
        session.add_all([Entry(title="apple pie"), Entry(title="train to busan")])
        session.commit()
        vectors.embed("entry")
        vectors.know("apple")
        (hit,) = search(session, Entry, "apple", 1)
        assert hit.row.title == "apple pie"
        by_distance = Entry.embedding.distance("apple")
        assert session.exec(select(Entry).order_by(by_distance)).first() is hit.row
        assert [passage.chunk for passage in hit.row.embedding] == [0]
    assert "embedding" not in Entry.model_fields
    assert "embedding" not in Entry(title="x").model_dump()


def test_without_it_pydantic_says_what_to_write() -> None:
    with pytest.raises(PydanticUserError, match="ClassVar"):

        class Wrong(SQLModel):
            embedding = Embedded("title")

    outside_of_classes.clear()


def test_after_the_class_it_is_warned_of() -> None:
    class Base(DeclarativeBase):
        pass

    class Late(Base):
        __tablename__ = "late"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]

    Late.embedding = Embedded("title")  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match=r"Embedded\('title'\) is in no class body"):
        assert declarations(Base.metadata) == []
    assert declarations(Base.metadata) == []  # said once


def test_on_a_mixin_it_is_not() -> None:
    class Mixin:
        embedding = Embedded("title")

    class Base(DeclarativeBase):
        pass

    assert declarations(Base.metadata) == []
    assert Mixin.embedding is not None
