"""What differs between operating systems: files, locks, mappings, memory, processes.

All that Linux, macOS and Windows do differently is asked here, and nowhere else: no other module
names a call, a flag or a path that one of them lacks (a test holds that). Each question has a
portable answer. What only one system can tell is None elsewhere, with the reason in words, and is
never guessed.

Read it in this order: ``opening`` (one safe open), ``positions`` and ``copying`` (bytes at a
place), ``mapping``, ``locks``, ``folders`` (names appear, are replaced and removed), ``names``
(what a file may be called), ``disk``, ``memory``, ``processes``.
"""
