"""Training one recipe: network, learner, checkpoints, export."""
