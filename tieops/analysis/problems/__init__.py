"""Find what is wasted or wrong in a model, with a fix for each problem.

``all_problems`` collects them; every other module finds one kind, and ``fixes`` writes the fix
as a call in Python or as a command.
"""
