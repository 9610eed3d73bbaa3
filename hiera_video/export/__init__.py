"""Export: a trained model as a file for other runtimes, proved equal before it gets its name.

    report = export(classifier, ExportSettings(format="onnx", out="m.onnx"), print)

`formats.py` writes the files, `quantise.py` makes int8 of them, `parity.py` runs them in a process
of their own and compares, `on_demand.py` does all of it for `Predictor.load(..., runtime=...)`.
"""
