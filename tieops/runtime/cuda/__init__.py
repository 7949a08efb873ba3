"""What only CUDA needs.

``libraries`` finds NVIDIA's libraries, ``provider_options`` checks the provider's options,
``device`` uploads, ``cuda_nodes`` knows what runs there, ``cuda_graph`` captures a run.
"""
