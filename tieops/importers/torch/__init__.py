"""Import from PyTorch: modules, programs and files, through torch.export and torch's exporter.

Read ``from_torch`` first: it is the whole import. Before the export, ``program_files`` opens files,
``isolation`` makes the export depend only on the module, ``subclasses``, ``told_apart``,
``program_names`` and ``rnn`` (with ``rnn_nodes``, ``rnn_pack``, ``rnn_scan`` and ``rnn_chain``)
prepare what torch's exporter would lose. After it, ``exported_graph`` cleans the graph up,
``port_names`` names its inputs and outputs, ``sharing`` (with ``storages`` and ``aliases``) finds
what the module shares, and ``module_record`` and ``lr_factors`` write down what only the module
knows. Importing this package loads torch.
"""
