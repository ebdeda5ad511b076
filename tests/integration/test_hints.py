"""Every hint of the database is followed to the letter and helps; none is on no list."""

import inspect
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from fix_drain import Connection, Lane
from fix_questions import QuestionRunner

from embedworker.cli.database import _ADVICE, explained
from embedworker.database import timeouts
from embedworker.database.connect import connect
from embedworker.database.loopback import set_up_loopback
from embedworker.errors import DatabaseError

ROOT = Path(__file__).parents[2]
VECTOR = "array_fill(0.1, array[{}])::vector"
TABLES = """
create table article (id integer primary key, title text, body text, views integer);
create table keyless (id integer not null, body text);
create table story (id integer primary key, body text);
create table story_embedding (id integer);
create table plain (id integer primary key, body text, at timestamptz);
create view seen as select * from plain;
insert into article values (1, 'one', 'first', 5);
select embed.enable('article', array['body']);
"""
# Two roles that are gone when the transaction is taken back.
ROLES = """
create role h_owner in role embed_admin; create role h_admin in role embed_admin;
grant usage, create on schema shop to h_owner, h_admin;
alter table plain owner to h_owner; alter table article owner to h_owner;
"""
OTHER = "select embed.enable('article', array['title', 'body'], name => 'other'{})"
PLAIN = "select embed.enable('plain', array['body']{})"
SWITCH = "select embed.begin_switch('article', 'mine')"
JUDGED = """select embed._require_judgement('{"lower": -0.005, "difference": 0, "questions": 9}')"""
TIMEOUT = "select embed._query_timeout('embed.query_timeout', '5s')"


class Case(NamedTuple):
    hint: str
    """Its first words, as the file has them."""
    wrong: str
    right: str
    """What the hint says. {command} is the statement of the hint after its colon."""
    before: str = ""


CASES = {
    "template, unknown column": Case(
        "Write {column} for a column given in columns",
        OTHER.format(", template => '{nothing} {body}'"),
        OTHER.format(", template => '{title} {body} {{'"),
    ),
    "template, brace": Case(
        "Write {column} for a column, and",
        OTHER.format(", template => '{title} {body'"),
        OTHER.format(", template => '{title} {body} {{'"),
    ),
    "template, unused column": Case(
        "Use every enabled column in the template",
        OTHER.format(", template => '{title}'"),
        OTHER.format(", template => '{title}: {body}'"),
    ),
    "template, column left out": Case(
        "Use every enabled column in the template",
        OTHER.format(", template => '{title}'"),
        "select embed.enable('article', array['title'], name => 'o', template => '{title}')",
    ),
    "questions kept for no number of days": Case(
        "30 keeps a question for 30 days",
        "select embed.log_questions('article', days => null)",
        "select embed.log_questions('article', days => 30)",
    ),
    "a setting that is not for administrators": Case(
        "embed.use_model and embed.use_reranker are for members of embed_admin",
        "insert into embed.setting (name, value) values ('questions', 'restricted')",
        "select embed.use_model(embed.default_model()), embed.use_reranker(embed.reranker());"
        "reset role; select embed.restrict_questions()",
        f"{ROLES} set role h_admin",
    ),
    "no key": Case(
        "Add one: alter table",
        "select embed.enable('keyless', array['body'])",
        "alter table keyless add primary key (id); select embed.enable('keyless', array['body'])",
    ),
    "key, left out": Case(
        "Leave the key out to take the primary key",
        PLAIN.format(", key => array['at']"),
        PLAIN.format(""),
    ),
    "key, made unique": Case(
        "Leave the key out to take the primary key",
        PLAIN.format(", key => array['at']"),
        "alter table plain add unique (at), alter at set not null;"
        + PLAIN.format(", key => array['at']"),
    ),
    "key of an array": Case(
        "Give another unique key with key",
        "select embed.enable('listed', array['body'])",
        "alter table listed add column id integer generated always as identity unique;"
        "select embed.enable('listed', array['body'], key => array['id'])",
        "create table listed (tags text[] primary key, body text)",
    ),
    "key named as ours": Case(
        "Give another unique key with key => …, or rename the column",
        "select embed.enable('part', array['body'])",
        "alter table part rename column chunk to piece; select embed.enable('part', array['body'])",
        "create table part (chunk integer primary key, body text)",
    ),
    "filter": Case(
        "Give a condition over columns of the table",
        PLAIN.format(", filter => 'nonsense'"),
        PLAIN.format(", filter => 'body <> ''draft'''"),
    ),
    "filter with a subquery": Case(
        "Give a condition over columns of the table",
        PLAIN.format(", filter => 'exists (select from article)'"),
        PLAIN.format(", filter => 'body <> ''draft'''"),
    ),
    "filter over time": Case(
        "For what depends on the time or a setting, add a boolean column",
        PLAIN.format(", filter => 'at <= now()'"),
        "alter table plain add column live boolean;" + PLAIN.format(", filter => 'live'"),
    ),
    "filter with a cast": Case(
        "For what depends on the time or a setting, add a boolean column",
        PLAIN.format(", filter => 'at::text > ''2026'''"),
        PLAIN.format(", filter => 'at >= ''2026-01-01'''"),
    ),
    "view": Case(
        "Enable the table that holds the text",
        "select embed.enable('seen', array['body'])",
        PLAIN.format(""),
    ),
    "temporary table": Case(
        "Use an ordinary table",
        "select embed.enable('brief', array['body'])",
        "create table shop.brief (like pg_temp.brief including all);"
        "select embed.enable('shop.brief', array['body'])",
        "create temporary table brief (id integer primary key, body text)",
    ),
    "catalog": Case(
        "Enable a table of your own",
        "select embed.enable('pg_class', array['relname'])",
        PLAIN.format(""),
    ),
    "no columns": Case(
        "Name the text columns: embed.enable(",
        "select embed.enable('plain', '{}')",
        PLAIN.format(""),
    ),
    "blank name": Case(
        "Leave name out, or say what this set of vectors is for",
        PLAIN.format(", name => ' '"),
        PLAIN.format("") + ";" + PLAIN.format(", name => 'for tests'"),
    ),
    "chunk": Case(
        "Leave it out, or give true or false",
        PLAIN.format(", chunk => null"),
        PLAIN.format(", chunk => false"),
    ),
    "words": Case(
        "Leave it out, or give true or false",
        PLAIN.format(", words => null"),
        PLAIN.format(", words => false"),
    ),
    "no such column": Case(
        "Its text columns: ", "select embed.enable('plain', array['text'])", PLAIN.format("")
    ),
    "not a text": Case(
        "Enable columns of text, varchar, char, citext or an enum, or arrays of these",
        "select embed.enable('article', array['views'], name => 'other')",
        "alter table article add column seen text generated always as (views::text) stored;"
        "select embed.enable('article', array['seen'], name => 'other')",
    ),
    "column twice": Case(
        "Name every column once",
        "select embed.enable('plain', array['body', 'body'])",
        PLAIN.format(""),
    ),
    "unknown model": Case(
        "Add another with embed.add_model(name, dimensions, max_tokens",
        OTHER.format(", model => 'mine'"),
        "select embed.add_model('mine', 384, 512, '', '', 'mean');"
        + OTHER.format(", model => 'mine'"),
    ),
    "no column for the vector": Case(
        "Add it: alter table",
        OTHER.format(", into_column => 'vec'"),
        "{command};" + OTHER.format(", into_column => 'vec'"),
    ),
    "column of other dimensions": Case(
        "Use a column of the model's dimensions, or another model",
        OTHER.format(", into_column => 'vec'"),
        "alter table article alter column vec type vector(384);"
        + OTHER.format(", into_column => 'vec'"),
        "alter table article add column vec vector(3)",
    ),
    "column of other dimensions, another model": Case(
        "Use a column of the model's dimensions, or another model",
        OTHER.format(", into_column => 'vec'"),
        "select embed.add_model('small', 3);"
        + OTHER.format(", into_column => 'vec', model => 'small'"),
        "alter table article add column vec vector(3)",
    ),
    "enabled for another column": Case(
        "Call embed.disable(%L, name => %L, drop_vectors => true) first",
        "select embed.enable('article', array['body'], into_column => 'vec')",
        "{command}; select embed.enable('article', array['body'], into_column => 'vec')",
        "alter table article add column vec vector(384)",
    ),
    "enabled in whole": Case(
        "Call embed.disable(%L, name => %L, drop_vectors => true) first",
        "select embed.enable('article', array['body'], chunk => false)",
        "{command}; select embed.enable('article', array['body'], chunk => false)",
    ),
    "enabled with other dimensions": Case(
        "To change the model while the old vectors answer: select embed.begin_switch(%L, %L); with",
        "select embed.enable('article', array['body'], model => 'wide')",
        "select embed.disable('article', drop_vectors => true);"
        "select embed.enable('article', array['body'], model => 'wide')",
        "select embed.add_model('wide', 512)",
    ),
    "enabled with other dimensions, by a switch": Case(
        "To change the model while the old vectors answer: select embed.begin_switch(%L, %L); with",
        "select embed.enable('article', array['body'], model => 'wide')",
        "select embed.begin_switch('article', 'wide')",
        "select embed.add_model('wide', 512)",
    ),
    "another table of that name": Case(
        "Rename it, or call embed.enable with another name",
        "select embed.enable('story', array['body'])",
        "select embed.enable('story', array['body'], name => 'tale')",
    ),
    "another table of that name, renamed": Case(
        "Rename it, or call embed.enable with another name",
        "select embed.enable('story', array['body'])",
        "alter table story_embedding rename to mine; select embed.enable('story', array['body'])",
    ),
    "vectors of other dimensions": Case(
        "Drop or rename that table, or enable with a model of its dimensions",
        PLAIN.format(""),
        "alter table plain_embedding rename to old;" + PLAIN.format(""),
        "select embed.add_model('small', 3);"
        + PLAIN.format(", model => 'small'")
        + "; select embed.disable('plain')",
    ),
    "vectors of other dimensions, their model": Case(
        "Drop or rename that table, or enable with a model of its dimensions",
        PLAIN.format(""),
        PLAIN.format(", model => 'small'"),
        "select embed.add_model('small', 3);"
        + PLAIN.format(", model => 'small'")
        + "; select embed.disable('plain')",
    ),
    "vectors of somebody else": Case(
        "Give it to the owner of the table with ALTER TABLE … OWNER TO",
        PLAIN.format(""),
        "reset role; alter table plain_embedding owner to h_owner; set role h_owner;"
        + PLAIN.format(""),
        ROLES
        + f"set role h_owner; {PLAIN.format('')}; select embed.disable('plain'); reset role;"
        + "alter table plain_embedding owner to h_admin; set role h_owner",
    ),
    "vectors of another source": Case(
        "Call embed.enable with another name => ….",
        PLAIN.format(", name => 'article'"),
        PLAIN.format(", name => 'mine'"),
    ),
    "not enabled": Case(
        "See the view embed.status",
        "select embed.pause('plain')",
        "select embed.pause(s.source) from embed.status s where s.source = 'article'::regclass",
    ),
    "not enabled, resume": Case(
        "See the view embed.status",
        "select embed.resume('plain')",
        "select embed.resume(s.source) from embed.status s where s.source = 'article'::regclass",
    ),
    "not enabled, retry": Case(
        "See the view embed.status",
        "select embed.retry('plain')",
        "select embed.retry(s.source) from embed.status s where s.source = 'article'::regclass",
    ),
    "not enabled, disable": Case(
        "See the view embed.status",
        "select embed.disable('plain')",
        "select embed.disable(s.source) from embed.status s where s.source = 'article'::regclass",
    ),
    "model without a name": Case(
        "Give a name of the hub",
        "select embed.add_model(' ', 3)",
        "select embed.add_model('owner/model', 3)",
    ),
    "model without dimensions": Case(
        "Give the length of the model's vectors",
        "select embed.add_model('m', 0)",
        "select embed.add_model('m', 3)",
    ),
    "model without a window": Case(
        "Give the length of the model's window, or leave it out for 512",
        "select embed.add_model('m', 3, 0)",
        "select embed.add_model('m', 3)",
    ),
    "model without a prefix": Case(
        "Leave out what the model does not want",
        "select embed.add_model('m', 3, query_prefix => null)",
        "select embed.add_model('m', 3)",
    ),
    "pooling": Case(
        "Give mean, cls, max or lasttoken",
        "select embed.add_model('m', 3, pooling => 'sum')",
        "select embed.add_model('m', 3, pooling => p)"
        " from unnest('{mean,cls,max,lasttoken}'::text[]) p",
    ),
    "endpoint": Case(
        "Give http://host:port/v1 or https://host/v1",
        "select embed.add_model('m', 3, endpoint => 'https://user:key@host/v1')",
        "select embed.add_model('m', 3, endpoint => 'https://host/v1')",
    ),
    "unknown default model": Case(
        "See embed.model for what is, or add it with embed.add_model(",
        "select embed.use_model('new')",
        "select embed.add_model('new', 384); select embed.use_model('new')",
    ),
    "change of a model that is used": Case(
        "Disable the tables that use it, call embed.add_model again",
        "select embed.add_model('mine', 384, passage_prefix => 'p: ')",
        "select embed.disable('article', drop_vectors => true, name => 'other');"
        "select embed.add_model('mine', 384, passage_prefix => 'p: ');"
        "select embed.enable('article', array['title'], name => 'other', model => 'mine')",
        "select embed.add_model('mine', 384);"
        "select embed.enable('article', array['title'], name => 'other', model => 'mine')",
    ),
    "column beside that of a source": Case(
        "Rename it with alter table %s rename column",
        "select embed.begin_switch('plain', storage => 'halfvec')",
        "alter table plain rename column vector_next to mine;"
        "select embed.begin_switch('plain', storage => 'halfvec')",
        "alter table plain add vector vector(384), add vector_next integer;"
        "select embed.enable('plain', array['body'], into_column => 'vector')",
    ),
    "default model of other dimensions": Case(
        "Call embed.use_model(name, switch => true), which fills new vectors",
        "select embed.use_model('wide')",
        "select embed.use_model('wide', switch => true)",
        "select embed.add_model('wide', 512)",
    ),
    "questions of a model that is not known": Case(
        "See embed.model for what is, or add it with embed.add_model(",
        "select embed.center_questions('new', '[1,0,0]')",
        "select embed.add_model('new', 3); select embed.center_questions('new', '[1,0,0]')",
    ),
    "mean of questions": Case(
        "Give the mean of the vectors of many Korean questions by this model",
        "select embed.center_questions('three', '[1,2]')",
        "select embed.center_questions('three', avg(v)) from (values ('[1,0,0]'::vector)) w (v)",
        "select embed.add_model('three', 3)",
    ),
    "sum of questions": Case(
        "Give the mean of vectors of the length 1, not their sum",
        "select embed.center_questions('three', '[2,1,0]')",
        "select embed.center_questions('three', '[0.9,0.1,0]')",
        "select embed.add_model('three', 3)",
    ),
    "share of the mean": Case(
        "0.2 was measured; 0 leaves the questions as they are",
        "select embed.center_questions('three', '[1,0,0]', 2)",
        "select embed.center_questions('three', '[1,0,0]', s) from (values (0.2), (0)) v (s)",
        "select embed.add_model('three', 3)",
    ),
    "unknown reranker": Case(
        "See embed.reranker for what is, or say how many tokens",
        "select embed.use_reranker('mine')",
        "select embed.use_reranker('mine', max_tokens => 512)",
    ),
    "window of the reranker": Case(
        "It is how many tokens of question and passage together",
        "select embed.use_reranker('mine', max_tokens => 0)",
        "select embed.use_reranker('mine', max_tokens => 512)",
    ),
    "time-out": Case(
        "Write for example `set %s = '500ms'`",
        f"set embed.query_timeout = 'soon'; {TIMEOUT}",
        f"set embed.query_timeout = '500ms'; {TIMEOUT}",
    ),
    "limit": Case(
        "Give at least 1, or null for no limit",
        "select embed.limit_questions(0)",
        "select embed.limit_questions(1), embed.limit_questions(null);"
        "select embed.restrict_questions()",
    ),
    "a table that would not be cut over with the others": Case(
        "Call embed.use_model(name, switch => true) again",
        "select embed.cut_over('article')",
        "select embed.use_model('mine', switch => true);"
        " select embed.cut_over('article', force => true)",
        "select embed.enable('article', array['title']); select embed.add_model('mine', 512);"
        " select embed.use_model('mine', switch => true);"
        " create table later (id int primary key, title text);"
        " select embed.enable('later', array['title'])",
    ),
    "switch that was not begun": Case(
        "Begin with embed.begin_switch(table, model)",
        "select embed.cut_over('article', force => true)",
        SWITCH + "; select embed.cut_over('article', force => true)",
        "select embed.add_model('mine', 384)",
    ),
    "switch, name that is taken": Case(
        "Call embed.disable(%L, name => %L) first",
        SWITCH,
        "{command};" + SWITCH,
        "select embed.add_model('mine', 384);"
        "select embed.enable('article', array['title'], name => 'article_next')",
    ),
    "enable during a switch": Case(
        "Call embed.end_switch first",
        "select embed.enable('article', array['title', 'body'])",
        "select embed.end_switch('article');select embed.enable('article', array['title', 'body'])",
        "select embed.add_model('mine', 384);" + SWITCH,
    ),
    "switch to a third model": Case(
        "End that with embed.end_switch first",
        "select embed.begin_switch('article', 'other')",
        "select embed.end_switch('article'); select embed.begin_switch('article', 'other')",
        "select embed.add_model('mine', 384), embed.add_model('other', 384);" + SWITCH,
    ),
    "switch to the same model": Case(
        "Name another model, or another storage",
        "select embed.begin_switch('article', embed.default_model())",
        SWITCH,
        "select embed.add_model('mine', 384)",
    ),
    "storage that there is not": Case(
        "Leave it out, or give 'vector' or 'halfvec'",
        PLAIN.format(", storage => 'half'"),
        PLAIN.format(", storage => 'halfvec'"),
    ),
    "another storage": Case(
        "A switch changes it in the background: select embed.begin_switch(%L",
        "select embed.enable('article', array['body'], storage => 'halfvec')",
        "{command}",
    ),
    "vectors left of another storage": Case(
        "Leave storage out to go on with them, or drop or rename that table",
        "select embed.enable('article', array['body'], storage => 'halfvec')",
        "drop table article_embedding;"
        "select embed.enable('article', array['body'], storage => 'halfvec')",
        "select embed.disable('article')",
    ),
    "model of what is not enabled": Case(
        "Give a table that embed.enable was called for",
        "select embed._model_of('plain')",
        "select embed._model_of(source) from embed.status",
    ),
    "views in the way of a cut": Case(
        "In one transaction: drop them, call this, and create them again",
        "select embed.cut_over('article', force => true)",
        "drop view near; select embed.cut_over('article', force => true);"
        "create view near as select * from article_embedding",
        "select embed.add_model('mine', 384); create view near as select * from article_embedding;"
        + SWITCH,
    ),
    "cut before it is complete": Case(
        "Wait until embed.switch says ready",
        "select embed.cut_over('article')",
        "select phase from embed.switch; select embed.cut_over('article', force => true)",
        "select embed.add_model('mine', 384);" + SWITCH,
    ),
    "tolerance": Case(
        "It is how much nDCG may be lost",
        f"set local embed.switch_tolerance = 'much'; {JUDGED}",
        f"set local embed.switch_tolerance = '0.01'; {JUDGED}",
    ),
    "judgement": Case(
        "Judge with more questions, allow more with embed.switch_tolerance",
        JUDGED.replace("-0.005", "-0.02"),
        "set local embed.switch_tolerance = '0.03';" + JUDGED.replace("-0.005", "-0.02"),
    ),
    "search of what is not enabled": Case(
        "Call embed.enable(%L, array[…]) with the text columns to search",
        f"select embed.search(null::plain, {VECTOR.format(384)})",
        PLAIN.format(""),
    ),
    "column dropped": Case(
        "Call embed.disable(%L, name => %L) and then embed.enable with the columns that are there",
        f"select embed.search(null::article, {VECTOR.format(384)})",
        "{command}; select embed.enable('article', array['title'])",
        "alter table article drop column body",
    ),
    "vectors dropped": Case(
        "Call embed.disable(%L, name => %L, drop_vectors => true) and embed.enable again",
        f"select embed.search(null::article, {VECTOR.format(384)})",
        "{command}; select embed.enable('article', array['body'])",
        "alter table article_embedding drop column embedding",
    ),
    "column dropped, triggers": Case(
        "Call embed.disable and then embed.enable with the columns that are there",
        "select embed._write_capture(s) from embed.source s where name = 'article'",
        "select embed.disable('article'); select embed.enable('article', array['title'])",
        "alter table article drop column body",
    ),
    "table dropped": Case(
        "Forget it with embed.disable(%s::regclass)",
        "select embed._check_structure(s) from embed.source s where name = 'article'",
        "{command}; select 1 / (not exists (select from embed.source where name = 'article'))::int",
        "drop table article",
    ),
}

# Of an embedded table; the questions are answered.
ASKED = {
    "length": Case(
        "Ask with the part that matters: a model reads a few hundred words at most",
        "select embed.query(repeat('x', 100001))",
        "select embed.query('x')",
    ),
    "length, loopback": Case(
        "Ask with a shorter text",
        "select embed.ask(gen_random_uuid(), 'testing:hash', repeat('x', 100001), 'query')",
        "select embed.ask(gen_random_uuid(), 'testing:hash', 'x', 'query')",
    ),
    "blank": Case(
        "Ask with at least one character that can be read",
        "select embed.query(' ')",
        "select embed.query(q) from (values (' '), ('x')) v (q) where q <> ' '",
    ),
    "model": Case(
        "See embed.model for what is, or add it with embed.add_model(",
        "select embed.query('x', 'testing:hahs')",
        "select embed.query('x', name) from embed.model where name = embed.default_model()",
    ),
    "model in use nowhere": Case(
        "Enable a table with it, embed.enable(",
        "select embed.query('x', 'mine')",
        "select embed.use_model('mine'); select embed.query('x', 'mine')",
        "select embed.add_model('mine', 384)",
    ),
    "model in use nowhere, enabled": Case(
        "Enable a table with it, embed.enable(",
        "select embed.query('x', 'mine')",
        PLAIN.format(", model => 'mine'") + "; select embed.query('x', 'mine')",
        "select embed.add_model('mine', 384)",
    ),
    "vector without a type": Case(
        "Give a vector with its type: '[0.1",
        "select embed.search(null::one, '[0.1, 0.2]')",
        f"select embed.search(null::one, {VECTOR.format(384)}::text::vector)",
    ),
    "passages": Case(
        "A cross-encoder reads each of them",
        "select embed._rerank('x', array_fill('x'::text, array[201]))",
        "set local embed.rerank_timeout = '10ms';"
        "select embed._rerank('x', array_fill('x'::text, array[30]))",
    ),
    "no table": Case(
        "Give a null of the table's type",
        "select embed.search(1, 'x')",
        "select embed.search(null::one, 'x')",
    ),
    "a name for a table": Case(
        "A null of the table's row type names the table. Write",
        "select embed.search('one', 'x')",
        "{command}",
    ),
    "name": Case(
        "It is under: ",
        "select embed.search(null::one, 'x', name => 'two')",
        "select embed.search(null::one, 'x', name => 'one')",
    ),
    "partition": Case(
        "Give null::%s",
        "select embed.search(null::piece, 'x')",
        "select embed.search(null::part, 'x')",
    ),
    "k": Case(
        "k is the number of rows wanted",
        "select embed.search(null::one, 'x', k => 0)",
        "select embed.search(null::one, 'x', k => 3)",
    ),
    "null": Case(
        "Give a text or a vector",
        "select embed.search(null::one, null::vector)",
        f"select embed.search(null::one, {VECTOR.format(384)})",
    ),
    "dimensions": Case(
        "Make it with the model of the table: embed.query(…, of => %L). To change that",
        f"select embed.search(null::one, {VECTOR.format(3)})",
        "select embed.search(null::one, embed.query('x', of => 'one'))",
    ),
    "dimensions, another model": Case(
        "Make it with the model of the table: embed.query(…, of => %L). To change that",
        f"select embed.search(null::one, {VECTOR.format(3)})",
        "select embed.begin_switch('one', 'small')",
        "select embed.add_model('small', 3)",
    ),
    "zero": Case(
        "Give the vector of a text, as embed.query makes it",
        "select embed.search(null::one, array_fill(0, array[384])::vector)",
        "select embed.search(null::one, embed.query('x'))",
    ),
    "grant": Case(
        "As the owner: grant select on %s to public",
        "set local role h_reader; select embed.search(null::one, 'x')",
        "{command}; set local role h_reader; select embed.search(null::one, 'x')",
        "create role h_reader; grant select on one to h_reader;"
        "revoke select on one_embedding from public",
    ),
    "rerank": Case(
        "It is how many of the best rows a cross-encoder reads",
        "select embed.search(null::one, 'x', rerank => 201)",
        "set local embed.rerank_timeout = '10ms';"
        "select embed.search(null::one, 'x', rerank => r) from (values (20), (0)) v (r)",
    ),
    "skip": Case(
        "It is how many of the best rows to leave out",
        "select embed.search(null::one, 'x', skip => -1)",
        "select embed.search(null::one, 'x', skip => 10)",
    ),
    "matching": Case(
        "Write for example matching",
        "select embed.search(null::one, 'x', matching => '[1]')",
        """select embed.search(null::one, 'x', matching => '{"id": [1, 2]}')""",
    ),
    "matching, column": Case(
        "It has: ",
        """select embed.search(null::one, 'x', matching => '{"number": 1}')""",
        """select embed.search(null::one, 'x', matching => '{"id": 1}')""",
    ),
    "matching, column without equality": Case(
        "Leave it out of matching",
        """select embed.search(null::one, 'x', matching => '{"id": 1, "place": "(1,1)"}')""",
        """select embed.search(null::one, 'x', matching => '{"id": 1}')""",
        "alter table one add column place json",
    ),
    "matching, a list in a list": Case(
        "Give a value as a json text, or a list of values",
        """select embed.search(null::one, 'x', matching => '{"body": [["first"]]}')""",
        """select embed.search(null::one, 'x', matching => '{"body": ["first", "second"]}')""",
    ),
    "matching, a range": Case(
        "matching compares for equality: give a value, or a list of values. For a range, write a",
        """select embed.search(null::one, 'x', matching => '{"id": {"gt": 5}}')""",
        "{range}",
    ),
    "matching, a range of a table with a column of vectors": Case(
        "matching compares for equality: give a value, or a list of values. For a range, write a",
        """select embed.search(null::inside, 'x', matching => '{"n": {"gt": 5}}')""",
        "{range}",
        "create table inside (a int, b int, body text, n int, v vector(384), primary key (a, b));"
        "select embed.enable('inside', array['body'], into_column => 'v');"
        "update embed.source_state set fingerprint = (select min(id) from embed.fingerprint)"
        " where fingerprint is null",
    ),
    "matching, a range of a table with a key of two": Case(
        "matching compares for equality: give a value, or a list of values. For a range, write a",
        """select embed.search(null::pair, 'x', matching => '{"a": {"between": [1, 3]}}')""",
        "{range}",
    ),
    "the table of vectors": Case(
        "Give null::%s",
        "select embed.search(null::one_embedding, 'x')",
        "select embed.search(null::one, 'x')",
    ),
    "matching, another type": Case(
        "Give a value of the type %s",
        """select embed.search(null::one, 'x', matching => '{"id": "first"}')""",
        """select embed.search(null::one, 'x', matching => '{"id": 1}')""",
    ),
    "weight": Case(
        "0 ranks by meaning alone; 0.2 is the default",
        "select embed.search(null::one, 'x', lexical => -1)",
        "select embed.search(null::one, 'x', lexical => w) from (values (0), (0.2)) v (w)",
    ),
    "weight without words": Case(
        "Leave lexical out, or enable the table again without words => false",
        "select embed.search(null::one, 'x', lexical => 1)",
        "select embed.search(null::one, 'x')",
        "update embed.source set words = false where name = 'one'",
    ),
    "weight of a table": Case(
        "0 ranks by meaning alone; 0.2 is the default",
        "select embed.set_lexical('one', -1)",
        "select embed.set_lexical('one', w) from (values (0), (0.2)) v (w)",
    ),
    "key": Case(
        "Give its value.",
        "select embed.similar(null::one, '{1,2}'::int[])",
        "select embed.similar(null::one, 1)",
    ),
    "key of two": Case(
        "Give its values in that order",
        "select embed.similar(null::pair, 1)",
        "select embed.similar(null::pair, row(1, 'a'));"
        """select embed.similar(null::pair, '{"a": 1, "b": "a"}'::json)""",
    ),
    "key's type": Case(
        "Give a value of the key column's type",
        "select embed.similar(null::one, 'first'::text)",
        "select embed.similar(null::one, 1)",
    ),
    "no such row": Case(
        "The row must exist, pass the source's filter and be visible to you",
        "select embed.similar(null::one, 7)",
        "select embed.similar(null::one, id) from one where body is not null",
    ),
    "row without a text": Case(
        "Compare it with others once its text columns hold something",
        "select embed.similar(null::one, 3)",
        "update one set body = 'third' where id = 3; {drain}; select embed.similar(null::one, 3)",
    ),
    "row without a vector": Case(
        "A worker will embed it; embed.status shows how many wait",
        "select embed.similar(null::one, 4)",
        "select 1 / (pending = 1)::integer from embed.status where source = 'one'::regclass;"
        "{drain}; select embed.similar(null::one, 4)",
        "insert into one values (4, 'fourth')",
    ),
}


def follow(connection: Connection, case: Case, lane: Lane | None = None) -> None:
    """Run what is wrong, and then what its hint says."""
    connection.execute(case.before.encode())
    with pytest.raises(psycopg.Error) as refused, connection.transaction():
        connection.execute(case.wrong.encode())
    hint = refused.value.diag.message_hint or ""
    said = re.split(r"%\w|%\d\$\w", case.hint)
    assert all(words in hint for words in said), refused.value
    found = re.search(r": ((?:alter|grant|select) .*?)[;.]?$", hint) or re.search(
        r"embed\.disable\(.*?\)(?=[ .])", hint
    )
    command = found[1] if found and found.groups() else found and f"select {found[0]}"
    right = case.right.replace("{command}", command or "").replace("…", "'x'")
    if right == "{range}":
        assert command is not None
        right = command.replace("> …", "> 2").replace("…", "'x'")
    for place, part in enumerate(right.split("{drain};")):
        if place:
            assert lane is not None
            assert lane.drain() == []
        connection.execute(part.encode())


@pytest.fixture(scope="module")
def shop(shared_database: str) -> Iterator[Connection]:
    with connect(shared_database) as connection:
        connection.execute("create schema shop; set search_path = shop, public")
        connection.execute(TABLES.encode())
        yield connection


@pytest.mark.parametrize("name", CASES)
def test_a_hint_that_is_followed_helps(shop: Connection, name: str) -> None:
    with shop.transaction() as attempt:
        follow(shop, CASES[name])
        raise psycopg.Rollback(attempt)


@pytest.fixture(scope="module")
def embedded(shared_database: str) -> Iterator[str]:
    """URL of a database with rows that are embedded, where questions are answered."""
    with connect(shared_database) as connection:
        set_up_loopback(connection)
        connection.execute(
            "create table one (id integer primary key, body text);"
            "create table plain (id integer primary key, body text);"
            "create table pair (a integer, b text, body text, primary key (a, b));"
            "create table part (id integer primary key, body text) partition by range (id);"
            "create table piece partition of part default;"
            "insert into one values (1, 'first'), (2, 'second'), (3, null);"
            "insert into pair values (1, 'a', 'first'); insert into part values (1, 'first');"
            "select embed.enable(t, array['body']) from unnest('{one,pair,part}'::regclass[]) t"
        )
    with closing(Lane(shared_database)) as lane, QuestionRunner(shared_database, worker_id=10**6):
        assert lane.drain() == []
        yield shared_database


@pytest.mark.parametrize("name", ASKED)
def test_a_hint_about_questions_that_is_followed_helps(embedded: str, name: str) -> None:
    case = ASKED[name]
    with connect(embedded) as connection, closing(Lane(embedded)) as lane:
        if "{drain}" in case.right:  # a worker sees what is committed
            follow(connection, case, lane)
            return
        with connection.transaction() as attempt:
            follow(connection, case)
            raise psycopg.Rollback(attempt)


# Advice that another test follows.
ELSEWHERE = {
    "Call embed.end_switch(%L).": (
        "test_switch::test_a_dropped_side_is_named_and_the_switch_can_be_ended"
    ),
    "Before you cut over, write embed.query(": "test_switch::test_the_whole_way_and_back",
    "When embed.switch says ready for all: select embed.cut_over(%L). It cuts all of these": (
        "test_switch_together::test_tables_that_follow_the_default_model_are_cut_over_together"
    ),
    "embed.use_model(name, switch => true) fills the new vectors while the old ones answer. One": (
        "test_switch_together::test_tables_that_follow_the_default_model_are_cut_over_together"
    ),
    "Repeat the transaction": "test_switch::test_an_old_transaction_gets_an_error_and_no_mixture",
    "To drop it: drop owned by": "test_migrate::test_down_that_cannot_take_all_takes_nothing",
    "Run `embedworker migrate --down`, then": "test_migrate::test_a_column_of_ours_that_is_gone",
    "Run embedworker migrate, which repairs": "test_migrate::test_a_column_of_ours_that_is_gone",
    "Run embedworker migrate, which writes them again": (
        "test_migrate::test_pgvector_that_was_moved_to_another_schema"
    ),
    "As a superuser: create extension vector": (
        "test_migrate::test_pgvector_that_was_dropped_with_its_schema"
    ),
    "Run embedworker migrate, which gives every right again": (
        "test_restore::test_restored_without_owners_and_grants"
    ),
    "Have a superuser run: grant %s": "test_rights::test_the_hint_gives_the_right",
    "Members of embed_admin are trusted with all embedding in this database. Have a super": (
        "test_trust::test_nobody_else_opens_our_schema"
    ),
    "Drop it, and create it in a schema of yours": (
        "test_trust::test_an_administrator_creates_nothing_in_our_schema"
    ),
    "Drop what is not of embedworker in the schema embed": (
        "test_trust::test_the_doctor_names_what_was_planted_before"
    ),
    "Have a superuser run: grant embed_search": (
        "test_rights::test_questions_that_are_left_to_members"
    ),
    "A source keeps its vectors in a table.": (
        "test_escalation::test_no_view_takes_the_place_of_vectors_or_of_a_queue"
    ),
    "As its owner: grant select on %s to %I;": ("test_guard::test_a_dropped_column_opens_nothing"),
    "First call embed.end_switch(%L)": (
        "test_switch::test_a_model_that_was_begun_with_by_mistake_is_corrected"
    ),
    "Rename %s, or drop it.": "test_switch::test_a_name_that_the_cut_needs_is_taken",
    "Ask %1$I": "test_rights::test_the_hint_gives_the_right",
    "As its owner: grant %s on schema": "test_rights::test_the_table_of_vectors_needs_a_place",
    "As its owner: grant select (%s)": "test_rights::test_the_hint_gives_the_right",
    "As the owner of the database: grant temporary": (
        "test_rights::test_a_filter_needs_a_temporary_table"
    ),
    "As its owner: grant usage on schema %I to embed_worker": (
        "test_hints::test_a_schema_that_the_worker_may_not_use"
    ),
    "Have its owner or a superuser run: drop function": (
        "test_trust::test_a_function_made_in_advance_is_refused"
    ),
    "To have them leave out what a worker writes": (
        "test_into_column::test_enable_says_which_triggers_fire"
    ),
    "As the owner of the database: alter database %I reset": (
        "test_index_scan::test_who_does_not_own_the_database_is_told_what_to_run"
    ),
    "A condition, an offset or row security leaves too few": (
        "test_index_scan::test_the_doctor_sees_for_whom_they_are_not_in_force"
    ),
    "A transaction, maybe this one, locks embed.question": (
        "test_loopback::test_asking_while_the_same_transaction_locks_the_questions"
    ),
    "It was never set up": "test_loopback::test_taken_down",
    "This database is a copy": "test_loopback::test_copied_database_does_not_ask_the_original",
    "the extension dblink is not there": "test_loopback::test_dblink_is_gone",
    "As a superuser: create extension dblink": (
        "test_loopback::test_a_superuser_runs_migrate_once_in_somebody_s_database"
    ),
    "Run embedworker migrate, which sets the loopback up again": (
        "test_loopback::test_no_host_works"
    ),
    "Restart a worker, or run `embedworker migrate`": (
        "test_standby::test_after_a_failover_questions_lead_to_the_new_server"
    ),
    "Run `embedworker migrate --primary-host HOST` on the primary": (
        "test_standby_asks::test_a_standby_that_was_not_told_says_how"
    ),
    "The primary must be reached from this standby": (
        "test_standby_asks::test_without_the_primary_the_words_rank"
    ),
    "See that this server reaches the primary": (
        "test_standby_asks::test_without_the_primary_the_words_rank"
    ),
    "Workers and embed.enable need the primary": ("test_standby::test_the_doctor_on_a_standby"),
    "Workers cannot write. ": "test_doctor::test_a_database_that_takes_no_writes_is_no_standby",
    "Start a worker with `embedworker run`. To wait for one": (
        "test_query::test_a_worker_that_is_back_within_the_grace_answers"
    ),
    "The next one is allowed in": (
        "test_question_limit::test_a_minutes_worth_at_once_and_then_evenly"
    ),
    "words is the default": ("test_degraded::test_an_error_where_it_is_wanted_or_no_words_count"),
    "Searches read from disk what does not fit": (
        "test_doctor::test_sizes_are_told_and_an_index_that_does_not_fit"
    ),
    " Vectors of half the size: select embed.begin_switch(": (
        "test_doctor::test_sizes_are_told_and_an_index_that_does_not_fit"
    ),
    "A build was broken off": "test_doctor::test_invalid_index",
    " create index concurrently ": "test_doctor::test_invalid_index",
    "A worker that owns the table builds one by itself": "test_doctor::test_a_build_that_fails",
    "As the owner: %s then select embed.sweep": (
        "test_doctor::test_advice_on_triggers_can_be_followed_by_an_owner"
    ),
    "It is paused": "test_advice::test_advice_of_the_doctor_that_is_followed_helps",
    "The view embed.failure says why; when that is mended": (
        "test_advice::test_advice_of_the_doctor_that_is_followed_helps"
    ),
    "Call embed.disable(%L, name => %L, drop_vectors => true) and enable the table again": (
        "test_hints::test_a_model_that_was_redefined"
    ),
    "call embed.disable(%L, name => %L, drop_vectors => true) and enable it again": (
        "test_advice::test_advice_of_the_doctor_that_is_followed_helps"
    ),
    "That is how the work of a worker on it ended": (
        "test_doctor::test_a_stored_error_is_told_with_what_to_do"
    ),
    "What the owner of a table has put on it": (
        "test_doctor::test_a_superuser_works_on_tables_of_others"
    ),
    "Wherever a statement compares vectors of %s, write embed.query(": (
        "test_doctor::test_a_table_of_another_model_than_the_default_one"
    ),
    "A running worker puts them back": "test_ddl::test_what_no_trigger_saw_between_two_looks",
    "Search does not show those": "test_hints::test_vectors_of_another_model",
    "Ask again when they are embedded": "test_search::test_nothing_found_while_rows_wait_is_said",
    "Search finds a row when it is embedded again": (
        "test_search::test_another_model_without_a_switch_is_told"
    ),
    "Until then, search compares the old vectors": (
        "test_status::test_other_columns_are_no_ready_table"
    ),
    "End them (pg_stat_activity shows them)": (
        "test_switch::test_a_reader_keeps_the_cut_waiting_and_writers_do_not"
    ),
    "alter table %s set schema %s;": "test_switch::test_two_schemas_are_refused",
    "select pg_terminate_backend(pid) ends it": (
        "test_status::test_nothing_waits_for_a_table_that_is_locked"
    ),
    "The view embed.status shows how many are left": "test_hints::test_vectors_of_another_model",
    "Run this as the role that ran embedworker migrate": (
        "test_hints::test_who_may_not_look_at_the_loopback"
    ),
    "Any role can then change the password": "test_hints::test_dblink_that_is_open_to_everybody",
    # The command line's and those of every session of ours.
    "An open transaction holds the table": (
        "acceptance/test_cli::test_a_table_that_is_in_use_is_not_waited_for_long"
    ),
    "This server takes no writes": "test_standby::test_commands_on_a_standby",
    "Run this as the owner of the table": "test_hints::test_the_command_line_without_rights",
    "Somebody cancelled it": "test_hints::test_a_command_that_somebody_cancelled",
    "{name}{found} ended it": ("test_timeouts::test_the_hint_names_setting_and_role_and_helps"),
}
# What no test can follow, and why.
NOT_FOLLOWED = {
    "This is a bug of embedworker": "no user can bring it about",
    "an open transaction has locked": "a pattern, no advice",
    "Try again.": "a patience",
    "% belongs to %": "a pattern, no advice",
    "Call embed.disable and embed.enable for another one": "the server refuses it before",
    "A worker may still load the model. A longer": "embed.query_timeout is set in test_query",
    "The first time a worker loads the model": "embed.rerank_timeout is set in test_rerank",
    "Ask with the part that matters, at its beginning": "a notice of what was left out",
    "A worker sweeps them all the same": "a notice; the sweep comes in any case",
    "Every session that asks": "max_connections wants a restart of the server",
    "Close connections or raise max_connections": "the same",
    "The log of the worker says more": "a log",
    "embed.query(…, model => …).": "a part of it",
    "embed.use_reranker(…).": "a part of it",
    "embed_admin": "a name of a role",
    "%too many%": "no advice: the server's words",
    "%remaining connection slots%": "no advice: the server's words",
    "@extschema:vector@.vector": "a type's name",
    "A worker that started a moment ago": "a log",
    "Start a worker; if one runs": "a log",
    "Start a worker with `embedworker run`.": "every test of a worker starts one",
    "Start a worker: embedworker run": "every test of a worker starts one",
    "Try again in a moment": "a patience",
    "Changes wait until a worker runs": "every test of a worker starts one",
    "Questions are not answered until": "every test of a worker starts one",
    "No worker answers": "a log",
    "Nothing has been embedded for minutes": "a log",
    "The error of embed.status keeps it": "a log",
    "no worker": "a state, no advice",
    "Workers sweep every night": "a log",
    "They seem to connect through a transaction pooler": "a pooler of the user's",
    "See whether enable_indexscan is off": "the planner's choice",
    "An index holds at most 4,000 dimensions": "another model",
    "The server builds none beside writers": "the statement is run in test_index_build",
    "As a superuser: alter extension vector update": "one pgvector is installed",
    "pgvector 0.8 is needed": "one pgvector is installed",
    "Versions 0.8.3 and 0.8.4 mended that": "one pgvector is installed",
    "Upgrade to PostgreSQL 15": "one server is installed",
    "Turn autovacuum on": "a setting of the server",
    "The role %s does not exist": "roles belong to all databases of the tests",
    "Run `embedworker migrate` as a role that may create": "the same; see test_roles",
    "Move them to a table of your own": "see test_cli::test_migrate_refuses_to_lose_documents",
}


def advised(connection: Connection, check: str, subject: str = "") -> str:
    row = connection.execute(
        'select advice from embed.doctor() where "check" = %s and strpos(subject, %s) > 0',
        [check, subject],
    )
    return str((row.fetchone() or ("",))[0])


def statement_of(advice: str) -> str:
    found = re.search(r"(?:grant|revoke|select|alter) [^;:]*", advice)
    assert found, advice
    return found[0].rstrip(".")


def test_a_schema_that_the_worker_may_not_use(shop: Connection) -> None:
    """The owner of the table is not that of the schema, who alone can give the right."""
    heard: list[str] = []
    shop.add_notice_handler(lambda said: heard.append(said.message_hint or ""))
    with shop.transaction() as attempt:
        shop.execute("revoke usage on schema shop from embed_worker")
        shop.execute(f"{ROLES} set local role h_owner; {PLAIN.format('')}".encode())
        (hint,) = [said for said in heard if "embed_worker" in said]
        shop.execute("reset role")
        shop.execute(statement_of(hint).encode())
        assert shop.execute(
            "select has_schema_privilege('embed_worker', 'shop', 'usage')"
        ).fetchone() == (True,)
        raise psycopg.Rollback(attempt)


def test_vectors_of_another_model(embedded: str) -> None:
    with connect(embedded) as connection, closing(Lane(embedded)) as lane:
        said: list[str] = []
        connection.add_notice_handler(lambda notice: said.append(notice.message_hint or ""))
        connection.execute("update one_embedding set fingerprint = fingerprint + 1 where id = 1")
        connection.execute("select embed.search(null::one, 'x')").fetchall()
        assert said == ["The view embed.status shows how many are left."]
        left = "select pending from embed.status where source = 'one'::regclass"
        assert "select embed.sweep of the table" in advised(connection, "fingerprints", "one")
        connection.execute("select embed.sweep('one')")
        assert lane.drain() == []
        assert connection.execute(left).fetchone() == (0,)
        assert advised(connection, "fingerprints", "one") == "None"


def test_a_model_that_was_redefined(shop: Connection) -> None:
    with shop.transaction() as attempt:
        shop.execute("select embed.add_model('mine', 3)")
        shop.execute(PLAIN.format(", model => 'mine'").encode())
        # An older embed.add_model did it.
        shop.execute("update embed.model set dimensions = 4 where name = 'mine'")
        call = re.search(r"embed\.disable\(.*?\)", advised(shop, "model", "plain"))
        assert call
        shop.execute(f"select {call[0]}; {PLAIN.format(', model => ' + repr('mine'))}".encode())
        assert "its log says" in advised(shop, "model", "plain")
        raise psycopg.Rollback(attempt)


def test_who_may_not_look_at_the_loopback(embedded: str) -> None:
    with connect(embedded) as connection, connection.transaction() as attempt:
        connection.execute("create role h_watch in role embed_monitor; set local role h_watch")
        assert advised(connection, "embed.query").startswith("Run this as the role that ran")
        connection.execute("reset role")
        assert advised(connection, "embed.query") == "None"
        raise psycopg.Rollback(attempt)


def test_dblink_that_is_open_to_everybody(embedded: str) -> None:
    with connect(embedded) as connection, connection.transaction() as attempt:
        connection.execute("grant execute on all functions in schema embed to public")
        advice = advised(connection, "dblink for others")
        assert "revoke execute on its functions from public" in advice
        functions = connection.execute(
            "select p.oid::regprocedure::text from pg_proc p join pg_depend d on d.objid = p.oid"
            " and d.deptype = 'e' and d.refobjid ="
            " (select oid from pg_extension where extname = 'dblink')"
        ).fetchall()
        for (function,) in functions:
            connection.execute(f"revoke execute on function {function} from public".encode())
        assert advised(connection, "dblink for others") == "None"
        raise psycopg.Rollback(attempt)


def test_the_command_line_without_rights(shop: Connection) -> None:
    with shop.transaction() as attempt:
        shop.execute(ROLES.encode())
        shop.execute("set local role h_owner")
        said = pytest.raises(DatabaseError, match="Run this as the owner of the table")
        with said, explained(shop), shop.transaction():
            shop.execute("create index on story (id)")
        shop.execute("reset role; create index on story (id)")
        raise psycopg.Rollback(attempt)


@pytest.mark.parametrize(
    ("wrong", "command"),
    [
        ("select embed.cut_over('article')", "with `embedworker switch start TABLE MODEL`"),
        (SWITCH + ";" + "select embed.cut_over('article')", "`embedworker switch status` says"),
        (
            SWITCH + ";" + SWITCH.replace("mine", "other"),
            "End that with `embedworker switch end TABLE` first",
        ),
        (
            SWITCH + "; select embed.enable('article', '{title,body}')",
            "Run `embedworker switch end TABLE` first; `embedworker switch status` shows",
        ),
        (
            "select embed.enable('article', '{body}', model => 'wide')",
            "answer: `embedworker switch start shop.article wide`; without that: run `embedworker "
            "disable shop.article --name article --drop-vectors` first",
        ),
        (
            "select embed.enable('article', '{title}', name => 'article_next');" + SWITCH,
            "Run `embedworker disable shop.article --name article_next` first",
        ),
    ],
)
def test_the_command_line_names_commands(shop: Connection, wrong: str, command: str) -> None:
    with shop.transaction() as attempt:
        shop.execute(
            "select embed.add_model('mine', 384), embed.add_model('other', 384),"
            " embed.add_model('wide', 9)"
        )
        with pytest.raises(DatabaseError) as said, explained(shop), shop.transaction():
            shop.execute(wrong.encode())
        assert command in str(said.value)
        assert "embed." not in str(said.value).partition("hint:")[2].replace("embed.failure", "")
        raise psycopg.Rollback(attempt)


def test_a_command_that_somebody_cancelled(shop: Connection) -> None:
    cancel = "select pg_cancel_backend(pg_backend_pid()), pg_sleep(60)"
    with (
        pytest.raises(DatabaseError, match=r"Somebody cancelled it.*: run it again"),
        explained(shop),
    ):
        shop.execute(cancel.encode())
    assert shop.execute("select 1").fetchone() == (1,)


_LITERAL = re.compile(r"'((?:[^']|'')*)'")
_START = re.compile(
    r"\bhint\s*=\s*|\b(?:wrong|again|problem|advice)\s+(?:constant\s+text\s*)?:=\s*"
)


def hints() -> set[str]:
    """What SQL and Python say as a hint or advice: literals of two words at least."""
    found = set(_ADVICE.values())
    found |= set(
        re.findall(r'"([^"]*(?:ended it|cancelled it)[^"]*)"', inspect.getsource(timeouts))
    )
    for file in (ROOT / "sql").rglob("*.sql"):
        text = re.sub(r"'(?:\s*\|\|)?\s*\n\s*(?:\|\|\s*)?'", "", file.read_text("utf-8"))
        for start in _START.finditer(text):
            found |= set(_expression(text, start.end()))
    return {said for said in found if len(re.findall(r"[A-Za-z]{2,}", said)) > 1}


def _expression(text: str, place: int) -> Iterator[str]:
    """Literals up to the end of an expression of SQL."""
    depth = 0
    while depth >= 0 and text[place] != ";" and not (depth == 0 and text[place] == ","):
        literal = _LITERAL.match(text, place)
        if literal:
            yield literal[1].replace("''", "'")
            place = literal.end()
            continue
        depth += (text[place] == "(") - (text[place] == ")")
        place += 1


def test_every_hint_is_followed() -> None:
    """A new one needs a case here, or the name of a test that follows it."""
    known = {case.hint for case in [*CASES.values(), *ASKED.values()]}
    known |= {*ELSEWHERE, *NOT_FOLLOWED}
    found = hints()
    assert sorted(said for said in found if not any(said.startswith(k) for k in known)) == []
    assert sorted(k for k in known if not any(said.startswith(k) for said in found)) == []


def test_what_is_followed_elsewhere_is_there() -> None:
    for named in ELSEWHERE.values():
        file, test = named.split("::")
        folder = ROOT / "tests" if "/" in file else ROOT / "tests" / "integration"
        assert f"def {test}(" in (folder / f"{file}.py").read_text("utf-8"), named
