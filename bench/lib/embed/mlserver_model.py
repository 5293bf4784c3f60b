"""The peer MLServer: a runtime of its own; batches come from its adaptive batching."""

from minilm import MiniLM
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceResponse


class MiniLMRuntime(MLModel):
    """One instance."""

    async def load(self):
        self.encoder = MiniLM()
        return True

    async def predict(self, payload):
        texts = StringCodec.decode_input(payload.inputs[0])
        vectors = self.encoder.embed(texts)
        output = NumpyCodec.encode_output("embedding", vectors)
        return InferenceResponse(model_name=self.name, outputs=[output])
