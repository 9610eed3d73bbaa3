"""Exported models: files of other runtimes, called as a torch model is.

    model = open_exported("m.onnx")
    logits = model(clips)

`facts.py` is what a file says about itself, `exported.py` the module that `scoring.py` calls, and
`load.py` opens a file in the runtime that is asked for.
"""
