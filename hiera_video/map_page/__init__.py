"""A map of a collection: its videos as points of a plane, alike near alike, on a page.

collection.py   the vectors of a table of features, and which videos have none
labels.py       what the points are coloured by
projection.py   vectors -> points of a plane (PCA, or UMAP where it is installed), and what is lost
page.py         the folder: index.html, map.js, style.css, pictures
"""
