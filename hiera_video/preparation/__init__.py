"""Prepare and check data sets: manifests, small copies, and the audit of files and labels."""
