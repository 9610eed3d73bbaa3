"""What videos a data set has: folders, lists and tables read into one `Manifest`."""
