"""Find stored tensors that are equal bit for bit, in one model or across several.

``by_content`` finds them: samples nominate, ``bit_equality`` decides, in any order of axes.
"""
