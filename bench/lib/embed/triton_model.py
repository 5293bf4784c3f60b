"""The peer Triton: model.py of its Python backend. Batches come from its dynamic batcher."""

import os
import sys
from unittest.mock import MagicMock

# Triton's stub has a Python of its own, which knows neither PYTHONPATH nor our environment.
sys.path[:0] = [os.environ["EMBED_LIB"], os.environ["EMBED_SITE"]]

try:  # wanted by transformers' downloader, not used: the stub's own Python may not fit this module
    import ssl  # noqa: F401
except ImportError:
    sys.modules.update({name: MagicMock() for name in ("ssl", "_ssl", "truststore")})

import numpy as np
import triton_python_backend_utils as pb_utils
from minilm import MiniLM


class TritonPythonModel:
    """One instance."""

    def initialize(self, args):
        self.model = MiniLM()

    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(r, "text").as_numpy() for r in requests]
        texts = [t.decode() for a in arrays for t in a.reshape(-1)]
        vectors = self.model.embed(texts)
        answers, at = [], 0
        for array in arrays:
            part = vectors[at : at + array.size].astype(np.float32)
            at += array.size
            tensor = pb_utils.Tensor("embedding", part)
            answers.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
        return answers
