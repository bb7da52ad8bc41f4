"""What a good transfer is: recipes of training a pretrained vision network on somebody's images, and running them."""
