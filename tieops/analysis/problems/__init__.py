"""What is wasted in a model or wrong with it, and the fix for each.

``all_problems`` collects them; every other module finds one kind, and ``fixes`` writes the fix
as a call in Python or as a command.
"""
