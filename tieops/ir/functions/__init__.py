"""Model-local functions: the calls that lead into their bodies, and inlining these calls.

A body is written once for all of its calls. So there is one policy: an edit that differs from call
to call inlines exactly the calls on its path, and then edits the main graph. No edit changes the
signature of a function for some of its calls. Read ``calls`` first, then ``inlining``.
"""
