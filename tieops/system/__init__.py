"""Differences between operating systems: files, locks, mappings, memory, processes.

Everything that Linux, macOS and Windows do differently is here: no other module names a call, a
flag or a path that one of them lacks, and a test enforces this. Each function has a portable
result. What only one system can report is None elsewhere, with the reason in words, and never
guessed.

Read in this order: ``opening`` (one safe open), ``file_bytes`` (bytes at an offset), ``mapping``,
``locks``, ``folders`` (names appear, are replaced and removed), ``file_names`` (what a file may be
called), ``disk``, ``memory``, ``processes``.
"""
