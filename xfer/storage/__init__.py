"""Local folders and object stores behind one kind of path."""
