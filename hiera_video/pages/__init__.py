"""What pages of HTML share: a folder that any browser opens, without a server or a network.

folder.py      which folders a page may replace, and what of them is deleted
links.py       the URLs of files outside the folder
moments.py     pictures of moments of a video, named by their content
templates.py   Jinja2, set up so that whatever comes from strangers is text
"""
