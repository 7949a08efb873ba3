"""Draw what a model shares: HTML to explore, SVG and PNG to show, text for a terminal."""
