-- What the vectors of a model's questions have in common, see embed.center_questions.
alter table embed.model add column question_offset real[]
    constraint model_question_offset_check check (array_position(question_offset, null) is null);

comment on column embed.model.question_offset is
    'What embed.search subtracts from the vector of a Korean question; null: not measured.';
