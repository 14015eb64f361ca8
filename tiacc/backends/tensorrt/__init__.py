"""TensorRT engines through the native API, for TensorRT and TensorRT-RTX.

From the bottom up:

- `flavours`: the libraries and what each can do.
- `layers`, `sizes`, `shaping`, `conversion`: a network under construction; one class, a concern a file.
- `call`: a node as a converter sees it. `converters`: the operators, a family a file.
- `builder`: network and plan. `engine`, `payload`: a built engine and its bytes. `backend`: the two backends.
- `interpreter`: evaluates a network on the CPU, independent of all of the above.
"""
