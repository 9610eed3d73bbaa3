"""What `tools/evidence.py` runs: ways to recognise the actions of small sets, beside each other.

action_sets.py   the sets, each with its parts (what is trained on, what is tested)
controls.py      changes of a clip that show what an answer rests on
feature_files.py features of videos, computed once and kept on disk
pictures.py      hand-made features of frames, and of how they differ
optical_flow.py  hand-made features of motion
encoders.py      features of a frozen model
readouts.py      classifiers on features; their settings are chosen inside the training videos
rows.py          the rows of the table that read features out
finetuning.py    the rows that run the trainer
results.py       results on disk, so that a second call goes on where the first stopped
tables.py        mean, interval, table, Markdown and JSON
"""
