"""What a model remembers in its metadata, read with care: anybody can write there.

``keys`` are the ``tieops.*`` entries, ``torch_kinds`` and ``torch_inputs`` what torch said of a
program's tensors and inputs; ``parsing`` reads all of them.
"""
