"""The peer Ray Serve: one replica behind its HTTP proxy; batches come from @serve.batch."""

import os
import sys
import time

sys.path.insert(0, os.environ["EMBED_LIB"])

import ray
from ray import serve


@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 1})
class Embed:
    """One instance."""

    def __init__(self):
        sys.path.insert(0, os.environ["EMBED_LIB"])
        from minilm import MiniLM

        self.model = MiniLM()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def batched(self, texts):
        return [v.tobytes() for v in self.model.embed(texts)]

    async def __call__(self, request):
        from starlette.responses import Response

        return Response(await self.batched((await request.body()).decode()))


if __name__ == "__main__":
    env = {"env_vars": {"EMBED_LIB": os.environ["EMBED_LIB"], "MINILM": os.environ["MINILM"]}}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=env)
    serve.start(http_options={"port": int(sys.argv[1])})
    serve.run(Embed.bind())
    while True:
        time.sleep(60)
