"""A model looked at: its layers with shapes, what is tied, what is wasted, what is wrong."""
