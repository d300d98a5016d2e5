"""How fast this machine is at each stage, on made data: `mil bench`."""
