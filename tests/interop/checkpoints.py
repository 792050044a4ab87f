"""What several tests here need: variables as training might leave them, and files to read them from."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": jnp.bfloat16, "I64": "i8", "U8": "u1", "BOOL": "?"}


def random_variables(network, channels=3):
    """Arrays of the network's variables: kernels of both signs, everything else above 0."""
    generator = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)

    def draw(path, leaf):
        least = -0.3 if path[-1].key.startswith("kernel") else 0.1
        return generator.uniform(least, 0.3, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(network.init, jax.random.key(0), images))


def safetensors(arrays, **changes):
    """The bytes of a file, written from the format's description.

    `arrays` are name -> array, as F32, or name -> (dtype, array); `changes` replace entries of the header.
    """
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, entry in arrays.items():
        dtype, array = entry if isinstance(entry, tuple) else ("F32", entry)
        content = np.asarray(array, jnp.dtype(DTYPES[dtype])).tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": list(np.shape(array)), "data_offsets": offsets}
        data += content
    text = json.dumps(header | changes).encode()
    return struct.pack("<Q", len(text)) + text + data
