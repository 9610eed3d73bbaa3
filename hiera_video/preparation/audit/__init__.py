"""The audit of a data set before training: every list, every file, every label.

`audit.py` tells the story. Its steps, in order:

* `lists.py` reads what is to be audited into splits;
* `cache.py` knows the files that earlier audits examined;
* `examine.py` decodes one file to its end, and `metadata.py` compares the result with the header;
* `checks.py` looks at the whole set: clip length, frame rate, labels;
* `duplicates.py` finds the same video under two names;
* `projection.py` measures how long an epoch takes to read;
* `report.py` shows the result as a table and as JSON, `cleaned_lists.py` as lists for training.

`result.py` holds the options and the result, `findings.py` what can be found, `jobs.py` what
travels to the child processes and back.
"""
