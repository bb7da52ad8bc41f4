"""CPUs, GPUs, machines and what they cost."""
