"""Finding what is shared: readers traced through the graph, and equal contents."""
