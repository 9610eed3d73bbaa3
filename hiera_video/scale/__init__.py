"""Label or describe a data set with many processes, on one machine or on a cluster of Ray.

`rows.py` reads what is to be done, `job.py` holds what a job is, `blocks.py` is its folder,
`worker.py` runs in each process, `cluster.py` starts Ray and `run.py` is the story.
"""
