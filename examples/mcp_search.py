"""Ask the tools of `embedworker mcp` as an assistant does.

    python examples/mcp_search.py "a question"

Set DATABASE_URL. The first table that the login may read is searched.
"""

import asyncio
import os
import sys

from mcp import Client, StdioServerParameters

SERVER = StdioServerParameters(
    command=sys.executable,
    args=["-m", "embedworker.cli", "mcp"],
    env={**os.environ, "EMBEDWORKER_LOG_LEVEL": "warning"},
)


async def main(question: str) -> None:
    async with Client(SERVER) as client:
        tables = await client.call_tool("sources", {})
        table = tables.structured_content["tables"][0]["table"]
        arguments = {"table": table, "question": question, "k": 3}
        found = await client.call_tool("search", arguments)
        if found.is_error:
            sys.exit(found.content[0].text)  # says what was wrong and what to do
        for hit in found.structured_content["hits"]:
            print(f"{hit['score']:.3f}  {hit['key']}  {hit['passage']}")


asyncio.run(main(" ".join(sys.argv[1:]) or "how do I fix a flat tyre?"))
