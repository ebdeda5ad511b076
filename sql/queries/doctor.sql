-- doctor_version
-- The version of the schema, as Alembic keeps it.
select (select v.version_num from embed.schema_version v) as version;

-- doctor_findings
-- What the database itself finds.
select d.subject, d."check", d.state, d.detail, d.advice from embed.doctor() as d;

-- doctor_models
-- The models in use.
select distinct coalesce(s.model, embed.default_model())
from embed.source s
order by 1;
