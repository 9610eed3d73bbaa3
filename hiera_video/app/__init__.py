"""The app: label a video in a browser, with Gradio.

choices.py      the weights that a visitor may choose
labeller.py     one job: labels, scores over time, explanation, reconstruction
reconstruct.py  what a masked autoencoder paints where a clip is hidden
results.py      what a job found, as HTML
interface.py    the page, made of Gradio's parts
guard.py        what a visitor may ask of the server
server.py       start, serve, stop
check.py        the app uses itself
"""
