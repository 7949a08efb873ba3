"""What an edit changed: two models compared as graphs, without running them."""
