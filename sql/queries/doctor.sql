-- doctor_findings
-- What the database itself finds.
select d.subject, d."check", d.state, d.detail, d.advice from embed.doctor() as d;

-- doctor_models
-- The models in use, each with its endpoint.
select distinct m.name, m.endpoint
from embed.source s
join embed.model m on m.name = coalesce(s.model, embed.default_model())
order by 1;
