"""A page of labelled videos: `hiera-video predict videos/ --html OUT`.

page.py       the whole: a table over all videos, a page for each
chart.py      scores over time, as numbers for an SVG
playback.py   how the page reaches a video: a link or a copy, and whether a browser plays it
*.html        the templates; style.css, table.js and player.js go into the folder as they are
"""
