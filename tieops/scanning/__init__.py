"""Scan many models: the ties and the waste of each, through any executor, resumable.

Read ``models`` first: it is ``tieops.scan``. ``one_model`` scans a single file, in one of the
``workers``, and its ``model_record`` goes into the ``journal``.
"""
