"""Machines to run sweeps on: what Ray's cluster launcher needs besides the cluster files themselves."""
