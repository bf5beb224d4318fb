"""What others have published about accelerated pipelines, as they said it, and which of it can be true.

schema.py     a claim: its words and what they mean, gaps included; its JSON
words.py      reads units, metrics and values; notes.py baselines and what is written beside a figure
names.py      makes the names of models, GPUs and techniques alike, for comparing
rows.py       rows of a collection of claims <-> claims, nothing lost and nothing invented
files.py      expected/claims/*.json: read, write, find by name
figures.py    a printed figure as all that it can stand for
checks.py     arithmetic within a source and agreement between sources: ratios.py, units.py, same.py, findings.py
template.py   what an author should state
command.py    `optsd claims`

Nothing here imports torch. What data sheets allow is the business of `optsd.estimate.published`, what a run is judged
by that of `optsd.judge.published`.
"""
