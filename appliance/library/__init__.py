"""The library of models: what is on disk, where it came from, and how it gets there and away.

A model is a folder in `<data_dir>/models`, an MLC directory with a manifest that has the SHA-256 of every
file. Versions lie side by side; equal files of several versions are one file on the disk.
"""
