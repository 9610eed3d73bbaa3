"""The audit of a data set: every file, line and label, before training.

`audit` is the story. `lists` reads what is to be looked at, `file` decodes one video to its end and
`claims` compares what it promised, `duplicates` finds equal content, `memory` keeps what was learnt
from one audit to the next, `records` names what can be found, and `report` shows it.
"""
