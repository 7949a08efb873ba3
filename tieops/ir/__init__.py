"""What a tied model is made of, and the kit that reads and edits its graph.

Read first ``parameter`` (a stored tensor, and the slots where layers read it), ``view`` (how a
slot reads it), ``layer`` and ``tie``. What decides about them: ``readers`` (which slots are one
reader, and whose a name is) and ``learnables`` (what trains). The kit on an ``onnx_ir`` graph:
``walk``, ``operators``, ``dataflow``, ``functions`` and ``edit``. ``metadata`` is what a file
remembers of all this, ``storage`` where the numbers lie.
"""
