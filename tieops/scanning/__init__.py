"""Many models at once: what each ties and wastes, through any executor, and resumable.

``models`` is ``tieops.scan``; ``one_model`` looks at a single file, in ``workers`` that may die,
and writes a ``model_record`` into the ``journal``.
"""
