"""Where the numbers of a model lie: ranges of bytes in files and in memory.

``byte_ranges`` says which bytes a tensor is, ``external_tensors`` and ``ranged_tensors`` read
them from a checked file and in pieces, ``data_files`` knows who refers to which data file, and
``value_samples`` tells a mask or a constant from a weight without reading all of it.
"""
