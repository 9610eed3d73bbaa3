"""The page of a run: RUN/index.html, which any browser opens, refreshed while the run trains.

facts.py      what the page is told: settings, data, the test; kept in RUN/page/facts.json
curves.py     the records of a run as lines of an SVG
mistakes.py   tested clips by class and by what they were taken for
pictures.py   a picture of each clip that is shown
page.py       the whole: index.html, and a page for each class that was tested
*.html        the templates; style.css and page.js go into RUN/page as they are
"""
