"""Data flow: how values go through If, Loop, Scan and calls, and what follows from that.

Read ``regions`` first: the interface of a node that has bodies, which everything else here is made
of and nobody else works out again. ``liveness`` goes back from the outputs: what they need, and
removing the rest, with the ``dead_arguments`` of loops and functions. ``input_dependent`` goes
forward from the inputs. ``constant_conditions`` puts the branch that always runs in the place of
its If.
"""
