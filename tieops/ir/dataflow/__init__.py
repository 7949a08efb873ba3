"""Data flow through If, Loop, Scan and calls, and the analyses based on it.

Read ``regions`` first: it defines the interface of nodes with bodies, on which the other modules
build. ``liveness`` walks back from the outputs and removes what they do not need, together with the
``dead_arguments`` of loops and functions. ``input_dependent`` walks forward from the inputs.
``constant_conditions`` replaces an If by the branch that always runs.
"""
