"""Render an analysis for people and for scripts.

``findings`` is the data; ``sections``, ``entries`` and ``rows`` arrange it, ``as_text``,
``as_html`` and ``plain_data`` write it.
"""
