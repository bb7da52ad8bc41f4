"""What trials need and what it costs: CPUs, GPU memory, machines, prices and budgets."""
