"""Read a table that lists images and their labels.

csv_table.py    the layout: from a file to a `Source`
parsing.py      text to rows, strictly
columns.py      which columns hold path, label and part
labels.py       missing and look-alike labels, by the rules of xfer/data/label_names.py
paths.py        the file that a path names
records.py      one row
"""
