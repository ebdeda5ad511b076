-- doctor_findings
-- What the database itself finds.
select d.subject, d."check", d.state, d.detail, d.advice from embed.doctor() as d;

-- doctor_models
-- The models in use.
select distinct coalesce(s.model, embed.default_model())
from embed.source s
order by 1;
