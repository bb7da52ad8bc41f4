"""Recipes for transferring a pretrained vision network to the user's own images, and the code that runs them."""
