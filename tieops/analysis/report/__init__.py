"""An analysis as people and scripts read it.

``findings`` is the data; ``sections``, ``entries`` and ``rows`` arrange it, ``as_text``,
``as_html`` and ``plain_data`` write it.
"""
