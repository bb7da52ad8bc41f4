"""Read and write files on local disks and in object stores through one kind of path."""
