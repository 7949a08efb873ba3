"""Models behind URLs: optional, by fsspec.

``urls`` tells URLs from paths without loading anything. ``remote_files`` reads ranges of files on
any file system, and finds the weights inside a remote .onnx file without reading them. ``http``
checks that servers send exactly what was requested.
"""
