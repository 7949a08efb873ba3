"""Code that only CUDA needs.

``libraries`` finds NVIDIA's libraries, ``provider_options`` checks the options of the provider,
``device`` uploads weights, ``cuda_nodes`` checks which nodes run on the GPU, and ``cuda_graph``
captures a run.
"""
