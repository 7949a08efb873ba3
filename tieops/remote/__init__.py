"""Models behind URLs: optional, by fsspec.

``urls`` tells a URL from a path and loads nothing. ``remote_files`` reads ranges of files on any
file system, ``http`` holds servers to what they were asked for, and ``embedded_remote`` finds the
weights inside a remote .onnx file without reading them.
"""
