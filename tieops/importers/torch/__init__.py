"""Import from PyTorch: modules, programs and files, through torch.export and torch's exporter.

Read ``from_torch`` first: it is the whole import. Before the export, ``program_files`` opens files,
``isolation`` makes the export depend only on the module, and ``aliases``, ``program_names`` and
``rnn`` prepare what torch would lose. After it, ``exported_graph`` cleans the graph
up and writes down what only the module knows, ``rnn_weights`` packs weights, ``port_names``
names inputs and outputs, and ``storages`` stores once what the module shares. ``gradients`` reports
what cannot be trained, ``lr_factors`` keeps learning rates. Importing this package loads torch.
"""
