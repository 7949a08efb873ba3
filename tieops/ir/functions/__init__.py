"""Model-local functions: the calls that lead into their bodies, and inlining these calls.

A body is written once for all of its calls. So there is one policy: an edit that has to differ from
call to call inlines the calls on its path, only those, and then edits the main graph. No edit
changes what a function takes or returns for some of its calls. Read ``calls`` first, then
``inlining``.
"""
