"""Where the numbers of a model are stored: ranges of bytes in files and in memory.

``byte_ranges`` identifies the bytes of a tensor, ``external_tensors`` and ``ranged_tensors`` read
them from a checked file or in pieces, ``data_files`` finds which model refers to which data file,
and ``value_samples`` recognises a mask or a constant without reading all of it.
"""
