"""Imported by `--import`: notes each row that is labelled, by a byte in a file, and takes its time,
so that there is some to be killed in."""

import os
import time

from hiera_video.scale import labelling

label = labelling._Labels.__call__


def counted(self, rows):
    for outcome in label(self, rows):
        with open(os.environ["COUNT_LABELS_IN"], "ab") as file:
            file.write(b"x")
        time.sleep(0.05)
        yield outcome


labelling._Labels.__call__ = counted
