"""A real LLM OS server with nothing to serve but health and introspection: `NAME STATE_DIR`.

With a third word it dies (exit code 3) so many seconds after it is ready.
"""

import asyncio
import os
import sys
from pathlib import Path

from llmos.lib import log
from llmos.lib.config import ServerConfig
from llmos.lib.serve import Server


async def main() -> None:
    name, state_dir = sys.argv[1:3]
    server = Server(name, ServerConfig(state_dir=Path(state_dir), kernel="none"))

    def ready() -> None:
        if len(sys.argv) > 3:
            asyncio.get_running_loop().call_later(float(sys.argv[3]), os._exit, 3)

    await server.run(ready=ready)


if __name__ == "__main__":
    log.setup(sys.argv[1])
    asyncio.run(main())
