"""A web application with a page to search, with FastAPI, SQLAlchemy and a worker of its own.

DATABASE_URL=postgresql://… uvicorn --app-dir examples fastapi_search:app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import escape
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from embedworker import Worker
from embedworker.errors import ConfigurationError
from embedworker.integrations.sqlalchemy import Embedded, enable_all, search_async

URL = os.environ["DATABASE_URL"]
engine = create_async_engine(URL.replace("postgresql://", "postgresql+psycopg://"))


class Base(DeclarativeBase):
    pass


class Recipe(Base):
    __tablename__ = "web_recipe"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    steps: Mapped[str]
    embedding = Embedded("title", "steps")


class NewRecipe(BaseModel):
    title: str
    steps: str


class Found(BaseModel):
    title: str
    passage: str
    score: float


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.run_sync(enable_all, Base.metadata)
    async with Worker(URL):  # leave this out where `embedworker run` runs
        yield
    await engine.dispose()


async def session() -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine, expire_on_commit=False) as opened:
        yield opened


app = FastAPI(lifespan=lifespan)
Database = Annotated[AsyncSession, Depends(session)]


@app.post("/recipes", status_code=201)
async def add(recipe: NewRecipe, database: Database) -> int:
    row = Recipe(title=recipe.title, steps=recipe.steps)
    database.add(row)
    await database.commit()
    return row.id


@app.get("/search")
async def find(q: str, database: Database, k: int = 5) -> list[Found]:
    try:
        hits = await search_async(database, Recipe, q, k)
    except ConfigurationError:
        return []  # the question is blank, or far too long
    return [Found(title=hit.row.title, passage=hit.passage, score=hit.score) for hit in hits]


@app.get("/", response_class=HTMLResponse)
async def page(database: Database, q: str = "") -> str:
    hits = await find(q, database) if q else []
    items = "".join(
        f"<li><b>{escape(hit.title)}</b> <span>{escape(hit.passage)}</span></li>" for hit in hits
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Recipes</title>
        <form><input name="q" value="{escape(q)}" placeholder="What do you feel like?" autofocus>
        <button>Search</button></form><ol>{items}</ol></html>"""
